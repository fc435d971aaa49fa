"""Operations against Pillow's."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from img2prompt.model.augment import to_pixels, to_planes
from img2prompt.model.rand_augment import (
    OPERATIONS,
    autocontrast,
    brightness,
    colour,
    contrast,
    identity,
    rand_augment,
    rotate,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)

SIZE = 24
GREY = (128, 128, 128)
Operation = Callable[[Tensor, Tensor], Tensor]


def pictures(count: int = 6) -> np.ndarray:
    """Colour gradients, which two ways to interpolate agree on, within 30 to 220."""
    small = np.random.default_rng(0).integers(30, 220, (count, 4, 4, 3), dtype=np.uint8)
    scaled = [Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for p in small]
    return np.stack([np.asarray(picture) for picture in scaled])


def affine(picture: Image.Image, xx: float, xy: float, yx: float, yy: float) -> Image.Image:
    """Pillow's affine transform around the middle of a picture."""
    half = SIZE / 2
    numbers = (xx, xy, half - half * (xx + xy), yx, yy, half - half * (yx + yy))
    size, kind = (SIZE, SIZE), Image.Transform.AFFINE
    return picture.transform(size, kind, numbers, Image.Resampling.BILINEAR, fillcolor=GREY)


def shifted(picture: Image.Image, x: float, y: float) -> Image.Image:
    numbers = (1, 0, x * SIZE, 0, 1, y * SIZE)
    size, kind = (SIZE, SIZE), Image.Transform.AFFINE
    return picture.transform(size, kind, numbers, Image.Resampling.BILINEAR, fillcolor=GREY)


REFERENCES: dict[Operation, Callable[[Image.Image, float], Image.Image]] = {
    identity: lambda picture, _: picture,
    autocontrast: lambda picture, _: ImageOps.autocontrast(picture),
    brightness: lambda picture, amount: ImageEnhance.Brightness(picture).enhance(1 + 0.9 * amount),
    colour: lambda picture, amount: ImageEnhance.Color(picture).enhance(1 + 0.9 * amount),
    contrast: lambda picture, amount: ImageEnhance.Contrast(picture).enhance(1 + 0.9 * amount),
    sharpness: lambda picture, amount: ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * amount),
    rotate: lambda picture, amount: picture.rotate(
        30 * amount, Image.Resampling.BILINEAR, fillcolor=GREY
    ),
    shear_x: lambda picture, amount: affine(picture, 1, 0.3 * amount, 0, 1),
    shear_y: lambda picture, amount: affine(picture, 1, 0, 0.3 * amount, 1),
    translate_x: lambda picture, amount: shifted(picture, 0.45 * amount, 0),
    translate_y: lambda picture, amount: shifted(picture, 0, 0.45 * amount),
}


def test_every_operation_has_a_reference() -> None:
    assert set(REFERENCES) == set(OPERATIONS)


@pytest.mark.parametrize("amount", [0.9, -0.5])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_operation_is_pillows(operation: Operation, amount: float) -> None:
    """Pixels at the rim of what was inside the picture blend with the grey in other ways."""
    pixels = pictures()
    planes = to_planes(torch.from_numpy(pixels))
    changed = to_pixels(operation(planes, torch.full((len(pixels),), amount))).numpy()
    for ours, picture in zip(changed, pixels, strict=True):
        theirs = np.asarray(REFERENCES[operation](Image.fromarray(picture), amount))
        apart = np.abs(ours.astype(int) - theirs).max(axis=-1)
        assert np.quantile(apart, 0.85) <= 3
        if operation not in (rotate, shear_x, shear_y, translate_x, translate_y):
            assert apart.max() <= 3


def test_autocontrast_keeps_a_plain_channel() -> None:
    planes = torch.full((1, 3, 8, 8), 77.0)
    planes[0, 0, 3, 3] = 90
    changed = autocontrast(planes, torch.ones(1))
    assert torch.equal(changed[0, 1:], planes[0, 1:])
    assert (changed[0, 0].min().item(), changed[0, 0].max().item()) == (0, 255)


def test_pictures_get_different_operations_at_the_magnitude() -> None:
    pixels = torch.from_numpy(np.repeat(pictures(1), 200, axis=0))
    ids = [f"row-{row}" for row in range(200)]
    changed = rand_augment(pixels, ids, 1, 9.0, seed=0, epoch=0)
    distinct = {picture.numpy().tobytes() for picture in changed}
    assert len(distinct) == 2 * (len(OPERATIONS) - 2) + 2
    same = sum(torch.equal(picture, pixels[0]) for picture in changed)
    assert 6 <= same <= 35
    expected = to_pixels(rotate(to_planes(pixels[:1]), torch.tensor([0.9])))
    assert any(torch.equal(picture, expected[0]) for picture in changed)
    assert torch.equal(rand_augment(pixels, ids, 0, 9.0, seed=0, epoch=0), pixels)
    mild = rand_augment(pixels, ids, 1, 1.0, seed=0, epoch=0)
    moved = [(result.int() - pixels.int()).abs().float().mean() for result in (mild, changed)]
    assert moved[0] < moved[1] / 2
