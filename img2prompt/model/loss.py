"""What training minimises."""

import torch.nn.functional as F
from torch import Tensor


def cosines(predicted: Tensor, target: Tensor) -> Tensor:
    """(B, 384) and (B, 384) to (B,) in float32: the competition's metric, row by row."""
    return F.cosine_similarity(predicted.float(), target.float(), dim=-1)


def cosine_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """One minus the mean cosine; 0 when every vector points at its target."""
    return 1 - cosines(predicted, target).mean()
