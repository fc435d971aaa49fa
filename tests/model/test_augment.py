import torch

from img2prompt.model.augment import flip, uniform_draws

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
