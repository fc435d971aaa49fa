"""Changes of training pictures that leave their prompt as it is.

Every draw is a function of seed, epoch and row id, so a picture is changed in the same way by any
worker, in any batch, and after a resume.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def flip(pixels: Tensor, ids: Sequence[str], probability: float, seed: int, epoch: int) -> Tensor:
    """Mirror each picture of (B, S, S, 3) left to right with this probability, on its device."""
    chosen = [draw < probability for draw in uniform_draws(ids, f"flip/{seed}/{epoch}")]
    mirrored = torch.tensor(chosen, device=pixels.device)
    return torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)


def uniform_draws(ids: Sequence[str], key: str) -> list[float]:
    """A number in [0, 1) for each row, equal for equal id and key."""
    digests = (hashlib.blake2b(f"{key}/{row_id}".encode(), digest_size=8) for row_id in ids)
    return [int.from_bytes(digest.digest()) / 2**64 for digest in digests]
