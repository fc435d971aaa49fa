"""Changes of training pictures that leave their prompt as it is.

Every draw is a function of seed, epoch and row id, so a picture is changed in the same way by any
worker, in any batch, and after a resume.
"""

import hashlib
import math
from collections.abc import Container, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ASPECT = 4 / 3
"""Largest ratio of the sides of a crop."""
ERASED_AREA = (0.02, 0.33)
"""Least and largest share of a picture that is erased (arXiv 1708.04896, s_l and s_h)."""
ERASED_ASPECT = 1 / 0.3
"""Largest ratio of the sides of an erased rectangle (arXiv 1708.04896, r_1)."""


def flip(
    pixels: Tensor,
    ids: Sequence[str],
    probability: float,
    seed: int,
    epoch: int,
    guarded: Container[int] = (),
) -> Tensor:
    """Mirror each picture of (B, S, S, 3) left to right with this probability, on its device.

    `guarded` are positions of pictures that stay as they are.
    """
    draws = uniform_draws(ids, f"flip/{seed}/{epoch}")
    chosen = [draw < probability and row not in guarded for row, draw in enumerate(draws)]
    mirrored = torch.tensor(chosen, device=pixels.device)
    return torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)


def random_resized_crop(
    pixels: Tensor, ids: Sequence[str], smallest: float, seed: int, epoch: int
) -> Tensor:
    """Cut a rectangle out of each picture of (B, S, S, 3) and scale it to the whole, bilinearly.

    Its area is a share between `smallest` and 1 of the picture's, its sides have a ratio of 3/4 to
    4/3, and a side longer than the picture's is cut to it (arXiv 1409.4842, section 6).
    """
    draw = RowDraws(ids, f"crop/{seed}/{epoch}", pixels.device)
    area, aspect = draw("area", smallest, 1.0), draw.exponent("aspect", ASPECT)
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = draw("left") * (1 - width), draw("top") * (1 - height)
    zero = torch.zeros_like(left)
    rows = [width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1]
    return to_pixels(warp(to_planes(pixels), torch.stack(rows, dim=1).view(-1, 2, 3)))


def random_erase(
    pixels: Tensor, ids: Sequence[str], probability: float, seed: int, epoch: int
) -> Tensor:
    """Fill a rectangle of a picture of (B, S, S, 3) with its mean colour, with this probability.

    Area and sides are those of random erasing (arXiv 1708.04896), which fills with noise; a side
    longer than the picture's is cut to it.
    """
    draw = RowDraws(ids, f"erase/{seed}/{epoch}", pixels.device)
    area, aspect = draw("area", *ERASED_AREA), draw.exponent("aspect", ERASED_ASPECT)
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    chosen = draw("chosen") < probability
    columns = _covers(draw("left") * (1 - width), width, pixels.shape[2])
    rows = _covers(draw("top") * (1 - height), height, pixels.shape[1])
    erased = chosen[:, None, None] & rows[:, :, None] & columns[:, None, :]
    colour = pixels.float().mean(dim=(1, 2), keepdim=True).round().to(pixels.dtype)
    return torch.where(erased[..., None], colour, pixels)


def _covers(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return (B, size): True for pixels whose centre is in a stretch; both are shares of `size`."""
    centres = (torch.arange(size, device=start.device) + 0.5) / size
    return (centres >= start[:, None]) & (centres < (start + length)[:, None])


class RowDraws:
    """Random numbers of rows, as float32 (B,) on a device."""

    def __init__(self, ids: Sequence[str], key: str, device: torch.device) -> None:
        self._ids = ids
        self._key = key
        self._device = device

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return a number in [low, high) for each row."""
        draws = torch.tensor(uniform_draws(self._ids, f"{self._key}/{name}"), device=self._device)
        return low + (high - low) * draws

    def exponent(self, name: str, largest: float) -> Tensor:
        """Return a ratio between 1 / largest and largest, whose logarithm is uniform."""
        return self(name, -math.log(largest), math.log(largest)).exp()


def to_planes(pixels: Tensor) -> Tensor:
    """Pixels uint8 (B, S, S, 3) as float32 (B, 3, S, S), from 0 to 255."""
    return pixels.permute(0, 3, 1, 2).float()


def to_pixels(planes: Tensor) -> Tensor:
    """Float (B, 3, S, S) as pixels uint8 (B, S, S, 3), rounded."""
    return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def warp(planes: Tensor, matrices: Tensor, fill: float | None = None) -> Tensor:
    """Transform (B, C, S, S) bilinearly; (B, 2, 3) map a place in the result to one in the input.

    Coordinates go from -1 to 1 across a picture. Places outside the input get `fill`, or the value
    at its border.
    """
    grid = F.affine_grid(matrices, list(planes.shape), align_corners=False)
    if fill is None:
        return F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return F.grid_sample(planes - fill, grid, align_corners=False) + fill


def uniform_draws(ids: Sequence[str], key: str) -> list[float]:
    """A number in [0, 1) for each row, equal for equal id and key."""
    digests = (hashlib.blake2b(f"{key}/{row_id}".encode(), digest_size=8) for row_id in ids)
    return [int.from_bytes(digest.digest()) / 2**64 for digest in digests]
