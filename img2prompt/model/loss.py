"""Losses and the metric, row by row."""

import torch.nn.functional as F
from torch import Tensor


def cosines(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the cosine of each row, (B,) in float32, of two (B, 384): the competition's metric."""
    return F.cosine_similarity(predicted.float(), target.float(), dim=-1)


def cosine_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return one minus the mean cosine; 0 when every vector points at its target."""
    return 1 - cosines(predicted, target).mean()
