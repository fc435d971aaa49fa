"""Losses and the metric, row by row.

Shapes: B rows, P distinct prompts of a global batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cosines(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the cosine of each row, (B,) in float32, of two (B, 384): the competition's metric."""
    return F.cosine_similarity(predicted.float(), target.float(), dim=-1)


def cosine_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return one minus the mean cosine; 0 when every vector points at its target."""
    return 1 - cosines(predicted, target).mean()


def angular_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean angle between the rows of two (B, 384), over pi: from 0 to 1.

    The angle is that of W. Kahan's formula 2 atan2(|u - v|, |u + v|), whose gradient stays finite
    where that of the arc cosine does not: at parallel vectors.
    """
    u, v = F.normalize(predicted.float(), dim=-1), F.normalize(target.float(), dim=-1)
    angles = 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
    return angles.mean() / math.pi


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference of all numbers."""
    return F.mse_loss(predicted.float(), target.float())


def negative_loss(predicted: Tensor, prompts: Tensor, own: Tensor, margin: float) -> Tensor:
    """Return the mean excess of the cosine with another prompt's vector over `margin`.

    It is `CosineEmbeddingLoss` of pairs labelled -1. `prompts` (P, 384) are the vectors of distinct
    prompts and `own` (B,) the position of each row's own among them; the other one is the next. A
    batch of one prompt has no pairs, and the loss is 0.
    """
    if len(prompts) == 1:
        return predicted.float().sum() * 0
    others = prompts[(own + 1) % len(prompts)]
    return F.relu(cosines(predicted, others) - margin).mean()


def info_nce_loss(predicted: Tensor, prompts: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of choosing each row's own prompt by cosine (arXiv 1807.03748).

    `prompts` (P, 384) are the vectors of distinct prompts and `own` (B,) the position of each row's
    own among them. The prompts are the candidates of pictures, not pictures those of prompts: so
    nothing but constants is shared by the workers and parts of a batch.
    """
    similarity = F.normalize(predicted.float(), dim=-1) @ F.normalize(prompts.float(), dim=-1).T
    return F.cross_entropy(similarity / temperature, own)
