"""The score: mean cosine between predicted and true prompt vectors, with its uncertainty.

Pictures of one prompt group are not independent, so intervals come from resampling whole groups
(the cluster bootstrap: Field and Welsh, "Bootstrapping clustered data", JRSS B 69, 2007).
Resampling single pictures would give intervals that are too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from img2prompt.data.vectors import unit_rows

_DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Score:
    """A mean cosine with its 95 % interval."""

    mean: float
    low: float
    high: float
    rows: int


def cosine(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the cosine (N,) float64 of each row of `pred` (N, D) with that of `target` (N, D).

    Raises:
        ValueError: shapes differ, or a row is zero or not finite.
    """
    if np.shape(pred) != np.shape(target):
        raise ValueError(f"pred has shape {np.shape(pred)}, target {np.shape(target)}")
    return np.sum(unit_rows(pred, "pred") * unit_rows(target, "target"), axis=1)


def mean_cosine_interval(
    cosines: np.ndarray, clusters: np.ndarray, samples: int, seed: int
) -> Score:
    """Return the mean over rows, with the 95 % percentile interval of a bootstrap over clusters.

    Args:
        cosines: (N,), N >= 1.
        clusters: any labels (N,); rows with one label are drawn together.
        samples: bootstrap resamples.
        seed: seed of the resampling.

    Returns:
        The score. A single cluster says nothing about the spread, so its interval is the whole
        range [-1, 1].
    """
    _, number = np.unique(clusters, return_inverse=True)
    sums, rows = np.bincount(number, cosines), np.bincount(number)
    mean = float(sums.sum() / rows.sum())
    if len(rows) == 1:
        return Score(mean, -1.0, 1.0, len(cosines))
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // len(rows))
    means = []
    for start in range(0, samples, step):
        # How often each cluster is drawn in each resample, as weights of a ratio of sums.
        drawn = rng.multinomial(
            len(rows), np.full(len(rows), 1 / len(rows)), size=min(step, samples - start)
        )
        means.append(drawn @ sums / (drawn @ rows))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Score(mean, float(low), float(high), len(cosines))


def by_source(
    cosines: np.ndarray,
    clusters: np.ndarray,
    sources: Sequence[str] | np.ndarray,
    samples: int,
    seed: int,
) -> dict[str, Score]:
    """Return the score over each source's rows, by the source's name."""
    names = np.asarray(sources)
    return {
        str(name): mean_cosine_interval(
            cosines[names == name], clusters[names == name], samples, seed
        )
        for name in np.unique(names)
    }
