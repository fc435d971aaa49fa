"""The score: mean cosine between predicted and true prompt vectors, with its uncertainty.

Pictures of one prompt group are not independent, so a group counts as one observation, weighted by
its pictures. Intervals are Student's t on the weighted group means, with a variance and degrees of
freedom for few groups of unequal sizes (the idea of Bell and McCaffrey, "Bias reduction in standard
errors for linear regression with multi-stage samples", Survey Methodology 28, 2002). They hold
their level from two groups on, where a percentile bootstrap does not: tests/predict/test_metrics.py
simulates both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from img2prompt.data.vectors import unit_rows

_LEVEL = 0.95


@dataclass(frozen=True)
class Score:
    """A mean cosine with its 95 % interval."""

    mean: float
    low: float
    high: float
    rows: int
    groups: int
    """Prompt groups that the rows belong to."""


def cosine(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the cosine (N,) float64 of each row of `pred` (N, D) with that of `target` (N, D).

    Raises:
        ValueError: shapes differ, or a row is zero or not finite.
    """
    if np.shape(pred) != np.shape(target):
        raise ValueError(f"pred has shape {np.shape(pred)}, target {np.shape(target)}")
    return np.sum(unit_rows(pred, "pred") * unit_rows(target, "target"), axis=1)


def mean_cosine_interval(cosines: np.ndarray, clusters: np.ndarray, limit: float = 1.0) -> Score:
    """Return the mean over rows with its 95 % interval, for rows that are alike within clusters.

    Args:
        cosines: (N,), N >= 1.
        clusters: any labels (N,); rows with one label count as one observation.
        limit: largest absolute value: 1 for cosines, 2 for differences of two.

    Returns:
        The score. A single cluster says nothing about the spread, so its interval is the whole
        range from -limit to limit.
    """
    _, number = np.unique(clusters, return_inverse=True)
    sums, rows = np.bincount(number, cosines), np.bincount(number)
    mean = float(sums.sum() / rows.sum())
    low, high = -limit, limit
    if len(rows) > 1:
        half = _half_width(sums / rows, rows / rows.sum())
        low, high = max(mean - half, low), min(mean + half, high)
    return Score(mean, low, high, len(cosines), len(rows))


def _half_width(means: np.ndarray, weights: np.ndarray) -> float:
    """Return half the width of the interval of a weighted mean of G >= 2 independent values.

    `means` (G,) have equal variances, `weights` (G,) add up to 1. The squared residual of value g
    has the expectation variance * (1 - 2 w_g + sum w^2), by which it is divided: the estimate of
    the mean's variance is unbiased. It is a quadratic form in the values, and the degrees of
    freedom are Satterthwaite's, those of the chi-squared distribution with its mean and variance.
    """
    square = float(weights @ weights)
    shrunk = 1 - 2 * weights + square
    shares = weights**2 / shrunk
    variance = shares @ (means - weights @ means) ** 2
    # Residuals g and h have the covariance variance * ((g == h) - w_g - w_h + sum w^2).
    total, first, second = (float(shares @ weights**power) for power in range(3))
    everywhere = square**2 * total**2 + 2 * total * second - 4 * square * total * first
    everywhere += 2 * first**2
    diagonal = shares**2 @ (1 + 2 * (square - 2 * weights))
    freedom = (shares @ shrunk) ** 2 / (everywhere + diagonal)
    return float(stdtrit(max(freedom, 1.0), (1 + _LEVEL) / 2) * np.sqrt(variance))


def by_source(
    cosines: np.ndarray, clusters: np.ndarray, sources: Sequence[str] | np.ndarray
) -> dict[str, Score]:
    """Return the score over each source's rows, by the source's name."""
    names = np.asarray(sources)
    return {
        str(name): mean_cosine_interval(cosines[names == name], clusters[names == name])
        for name in np.unique(names)
    }
