"""A linear head in closed form: ridge regression on standardised features.

A pass over the rows adds up `RidgeSums`. They have one size for any number of rows (12 MB for 1,024
features), and everything else follows from them: means, standard deviations and the heads of all
strengths. Sums of parts of the rows add, and subtract to leave a part out. They are float64, so how
the rows were divided changes a head by rounding errors only.

Shapes: B rows, D features, E outputs (384), S strengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

CONSTANT = 1e-12
"""Largest variance of a constant feature, as a share of its mean square: rounding errors of float64
sums are below it, steps of a float16 feature above."""

SMALLEST_LENGTH = 1e-8
"""Shorter vectors count as this long, as in torch's cosine similarity."""


@dataclass(frozen=True)
class RidgeSums:
    """Sums over rows of features x (D,) and targets y (E,), in float64."""

    rows: int
    x: np.ndarray
    """Sum of x: (D,)."""
    y: np.ndarray
    """Sum of y: (E,)."""
    xx: np.ndarray
    """Sum of x x': (D, D)."""
    xy: np.ndarray
    """Sum of x y': (D, E)."""

    @classmethod
    def over(cls, features: np.ndarray, targets: np.ndarray) -> "RidgeSums":
        """Sum over rows of any float type, features (B, D) and targets (B, E)."""
        x, y = features.astype(np.float64), targets.astype(np.float64)
        return cls(len(x), x.sum(axis=0), y.sum(axis=0), x.T @ x, x.T @ y)

    def __add__(self, other: "RidgeSums") -> "RidgeSums":
        return RidgeSums(
            self.rows + other.rows,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
        )

    def __sub__(self, other: "RidgeSums") -> "RidgeSums":
        """Leave out the rows of `other`, which must be among these."""
        return RidgeSums(
            self.rows - other.rows,
            self.x - other.x,
            self.y - other.y,
            self.xx - other.xx,
            self.xy - other.xy,
        )


@dataclass(frozen=True)
class RidgeHeads:
    """Linear heads for plain features, one a strength, in float64."""

    weight: np.ndarray
    """(S, D, E)."""
    bias: np.ndarray
    """(S, E)."""

    def state(self, number: int) -> dict[str, Tensor]:
        """Return the float32 tensors of one head as `nn.Linear` names them: (E, D) and (E,)."""
        weight = np.ascontiguousarray(self.weight[number].T)
        tensors = {"weight": weight, "bias": self.bias[number]}
        return {name: torch.from_numpy(array).float() for name, array in tensors.items()}

    def cosine_sums(self, features: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return each head's sum of cosines over rows, (S,) for features (B, D), targets (B, E)."""
        x, y = features.astype(np.float64), targets.astype(np.float64)
        length = _lengths(y)
        sums = []
        for weight, bias in zip(self.weight, self.bias, strict=True):
            predicted = x @ weight + bias
            dots = np.einsum("be,be->b", predicted, y)
            sums.append(np.sum(dots / (length * _lengths(predicted))))
        return np.array(sums)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Return the length of each row, at least SMALLEST_LENGTH."""
    return np.maximum(np.sqrt(np.einsum("be,be->b", vectors, vectors)), SMALLEST_LENGTH)


def solve(sums: RidgeSums, strengths: Sequence[float]) -> RidgeHeads:
    """Return the heads with the smallest mean squared error plus penalty, one for each strength.

    The penalty is the strength times the sum of squared weights of standardised features (mean 0,
    deviation 1); the targets' mean is not penalised. In terms of Hastie et al. ("The Elements of
    Statistical Learning", section 3.4.1) and scikit-learn's `Ridge`, alpha is strength times rows.
    One eigendecomposition serves all strengths. Constant features get weights of zero. There may be
    more features than rows.
    """
    mean_x, mean_y = sums.x / sums.rows, sums.y / sums.rows
    square = np.diag(sums.xx) / sums.rows
    covariance = sums.xx / sums.rows - np.outer(mean_x, mean_x)
    variance = np.diag(covariance)
    constant = variance <= CONSTANT * square
    scale = np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, variance)))
    # The matrix has no more eigenvalues above 0 than there are rows.
    width = len(scale)
    first = max(0, width - sums.rows)
    correlation = covariance * np.outer(scale, scale)
    solved = eigh(correlation, subset_by_index=(first, width - 1), overwrite_a=True)
    values, axes = np.asarray(solved[0]), np.asarray(solved[1])
    values = values.clip(min=0)  # of a matrix without full rank, some are rounding errors below 0
    cross = sums.xy / sums.rows - np.outer(mean_x, mean_y)
    rotated = axes.T @ (scale[:, None] * cross)
    back = scale[:, None] * axes
    weight = np.stack([back @ (rotated / (values + strength)[:, None]) for strength in strengths])
    return RidgeHeads(weight, mean_y - mean_x @ weight)
