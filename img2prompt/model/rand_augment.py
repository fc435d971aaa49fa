"""RandAugment on the device (Cubuk et al., arXiv 1909.13719).

Each picture gets some operations, drawn from OPERATIONS, one after the other, all at one magnitude.
Posterize, solarize and equalize are left out, as by the 3rd place of Kaggle's "Stable Diffusion -
Image to Prompts".

Shapes: B pictures, planes float32 (B, 3, S, S) from 0 to 255, amounts (B,).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from img2prompt.model.augment import RowDraws, to_pixels, to_planes, warp

LARGEST = 10.0
"""Largest magnitude."""
GREY = 128.0
"""Value of pixels that come from outside a picture."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in Pillow's mode L."""


def rand_augment(
    pixels: Tensor, ids: Sequence[str], count: int, magnitude: float, seed: int, epoch: int
) -> Tensor:
    """Apply `count` operations of this magnitude (0 to LARGEST) to each of (B, S, S, 3)."""
    planes = to_planes(pixels)
    for number in range(count):
        draw = RowDraws(ids, f"operation/{number}/{seed}/{epoch}", pixels.device)
        chosen = draw("name", 0, len(OPERATIONS)).long().clamp(max=len(OPERATIONS) - 1)
        amounts = torch.where(draw("sign") < 0.5, -1.0, 1.0) * magnitude / LARGEST
        for position, operation in enumerate(OPERATIONS):
            rows = (chosen == position).nonzero()[:, 0]
            if len(rows):
                changed = operation(planes[rows], amounts[rows]).clamp(0, 255)
                planes = planes.index_copy(0, rows, changed)
    return to_pixels(planes)


def identity(planes: Tensor, amounts: Tensor) -> Tensor:
    """Return the pictures as they are."""
    return planes


def autocontrast(planes: Tensor, amounts: Tensor) -> Tensor:
    """Stretch each channel to the range from 0 to 255; one of a single value stays."""
    low, high = planes.amin((2, 3), keepdim=True), planes.amax((2, 3), keepdim=True)
    scale = torch.where(high > low, 255 / (high - low), 1.0)
    return torch.where(high > low, (planes - low) * scale, planes)


def brightness(planes: Tensor, amounts: Tensor) -> Tensor:
    """Multiply all values by 1 + 0.9 `amounts`."""
    return _enhance(planes, torch.zeros_like(planes), amounts)


def colour(planes: Tensor, amounts: Tensor) -> Tensor:
    """Move the pictures toward their grey, or away from it."""
    return _enhance(planes, _grey(planes).expand_as(planes), amounts)


def contrast(planes: Tensor, amounts: Tensor) -> Tensor:
    """Move all values toward the mean of the picture's grey, or away from it."""
    mean = _grey(planes).mean((1, 2, 3), keepdim=True)
    return _enhance(planes, mean.expand_as(planes), amounts)


def sharpness(planes: Tensor, amounts: Tensor) -> Tensor:
    """Move the pictures toward a smoothed copy, or away from it; the outermost pixels stay.

    The filter is Pillow's SMOOTH: ones around a five, over 13.
    """
    size = planes.shape[-1]
    smooth = 4 * planes[..., 1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            smooth = smooth + planes[..., row : size - 2 + row, column : size - 2 + column]
    blurred = planes.clone()
    blurred[..., 1:-1, 1:-1] = smooth / 13
    return _enhance(planes, blurred, amounts)


def _grey(planes: Tensor) -> Tensor:
    """Return the luminance, (B, 1, S, S)."""
    weights = torch.tensor(LUMA, device=planes.device).view(1, 3, 1, 1)
    return (planes * weights).sum(1, keepdim=True)


def _enhance(planes: Tensor, plain: Tensor, amounts: Tensor) -> Tensor:
    """Return `plain` plus 1 + 0.9 `amounts` times the difference to it."""
    return plain + (1 + 0.9 * amounts).view(-1, 1, 1, 1) * (planes - plain)


def rotate(planes: Tensor, amounts: Tensor) -> Tensor:
    """Turn the pictures by up to 30 degrees."""
    angles = amounts * math.radians(30)
    cos, sin = angles.cos(), angles.sin()
    return _transform(planes, cos, -sin, sin, cos)


def shear_x(planes: Tensor, amounts: Tensor) -> Tensor:
    """Shift rows by up to 0.3 of their distance from the middle."""
    one = torch.ones_like(amounts)
    return _transform(planes, one, 0.3 * amounts, 0 * one, one)


def shear_y(planes: Tensor, amounts: Tensor) -> Tensor:
    """Shift columns by up to 0.3 of their distance from the middle."""
    one = torch.ones_like(amounts)
    return _transform(planes, one, 0 * one, 0.3 * amounts, one)


def translate_x(planes: Tensor, amounts: Tensor) -> Tensor:
    """Shift the pictures sideways by up to 0.45 of their side."""
    one, zero = torch.ones_like(amounts), torch.zeros_like(amounts)
    return _transform(planes, one, zero, zero, one, x=0.9 * amounts)


def translate_y(planes: Tensor, amounts: Tensor) -> Tensor:
    """Shift the pictures up or down by up to 0.45 of their side."""
    one, zero = torch.ones_like(amounts), torch.zeros_like(amounts)
    return _transform(planes, one, zero, zero, one, y=0.9 * amounts)


def _transform(
    planes: Tensor,
    xx: Tensor,
    xy: Tensor,
    yx: Tensor,
    yy: Tensor,
    x: Tensor | int = 0,
    y: Tensor | int = 0,
) -> Tensor:
    """Read pictures at `[[xx, xy], [yx, yy]] @ place + [x, y]`, with GREY around them."""
    zero = torch.zeros_like(xx)
    rows = [xx, xy, zero + x, yx, yy, zero + y]
    return warp(planes, torch.stack(rows, dim=1).view(-1, 2, 3), GREY)


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    *(identity, autocontrast, brightness, colour, contrast, sharpness),
    *(rotate, shear_x, shear_y, translate_x, translate_y),
)
