import numpy as np
import torch
from PIL import Image

from img2prompt.model.augment import flip, random_erase, random_resized_crop, uniform_draws

IDS = [f"part-000/{number}.png" for number in range(4000)]


def test_flip_mirrors_left_and_right_only_where_drawn() -> None:
    pixels = torch.arange(40 * 2 * 3 * 3, dtype=torch.int64).reshape(40, 2, 3, 3)
    flipped = flip(pixels, IDS[:40], 0.5, seed=1, epoch=0)
    mirrored = torch.from_numpy(pixels.numpy()[:, :, ::-1].copy())
    is_flipped = [draw < 0.5 for draw in uniform_draws(IDS[:40], "flip/1/0")]
    assert 0 < sum(is_flipped) < 40
    for row, chosen in enumerate(is_flipped):
        assert torch.equal(flipped[row], (mirrored if chosen else pixels)[row])


def test_flip_never_and_always() -> None:
    pixels = torch.randint(0, 256, (8, 4, 4, 3), dtype=torch.uint8)
    assert torch.equal(flip(pixels, IDS[:8], 0.0, seed=0, epoch=0), pixels)
    assert torch.equal(flip(pixels, IDS[:8], 1.0, seed=0, epoch=0), pixels.flip(2))


def test_flip_of_a_row_does_not_depend_on_its_batch() -> None:
    pixels = torch.randint(0, 256, (30, 4, 4, 3), dtype=torch.uint8)
    whole = flip(pixels, IDS[:30], 0.3, seed=5, epoch=2)
    order = torch.randperm(30)
    shuffled = flip(pixels[order], [IDS[row] for row in order], 0.3, seed=5, epoch=2)
    assert torch.equal(shuffled, whole[order])
    parts = [flip(pixels[a:b], IDS[a:b], 0.3, seed=5, epoch=2) for a, b in ((0, 11), (11, 30))]
    assert torch.equal(torch.cat(parts), whole)


def test_draws_are_uniform_and_independent_between_epochs_and_seeds() -> None:
    first, second, other = (
        torch.tensor(uniform_draws(IDS, key)) for key in ("flip/0/0", "flip/0/1", "flip/1/0")
    )
    assert abs(first.mean() - 0.5) < 0.02
    assert abs((first < 0.1).float().mean() - 0.1) < 0.02
    for later in (second, other):
        assert abs(torch.corrcoef(torch.stack([first, later]))[0, 1]) < 0.05


def smooth_pictures(count: int, size: int = 24) -> torch.Tensor:
    """Colour gradients, which two ways to interpolate agree on."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    scaled = [Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC) for p in small]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in scaled]))


def test_a_crop_is_pillows() -> None:
    pixels, ids = smooth_pictures(12), IDS[:12]
    cropped = random_resized_crop(pixels, ids, 0.4, seed=1, epoch=3)
    draws = {
        name: uniform_draws(ids, f"crop/1/3/{name}") for name in ("area", "aspect", "left", "top")
    }
    for row, picture in enumerate(pixels.numpy()):
        area = 0.4 + 0.6 * draws["area"][row]
        aspect = (4 / 3) ** (2 * draws["aspect"][row] - 1)
        width, height = min(1, (area * aspect) ** 0.5), min(1, (area / aspect) ** 0.5)
        assert 0.3 < width * height <= 1
        left, top = draws["left"][row] * (1 - width), draws["top"][row] * (1 - height)
        box = [24 * side for side in (left, top, left + width, top + height)]
        expected = Image.fromarray(picture).transform(
            (24, 24), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR
        )
        inside = np.abs(cropped[row].numpy().astype(int) - np.asarray(expected))[1:-1, 1:-1]
        assert inside.max() <= 2


def test_erasing_fills_a_rectangle_with_the_mean_colour() -> None:
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (400, 16, 16, 3), np.uint8))
    erased = random_erase(pixels, IDS[:400], 0.5, seed=0, epoch=0)
    shares = []
    for before, after in zip(pixels, erased, strict=True):
        changed = (before != after).any(-1)
        if changed.any():
            rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
            block = after[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            mean = before.double().mean((0, 1)).round().to(torch.uint8)
            assert torch.equal(block, mean.expand_as(block))
            shares.append(block.shape[0] * block.shape[1] / 256)
    assert 160 < len(shares) < 240
    assert 0 < min(shares) < 0.06 < 0.2 < max(shares) < 0.45
    assert torch.equal(random_erase(pixels, IDS[:400], 0.0, seed=0, epoch=0), pixels)
