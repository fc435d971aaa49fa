"""Certainty of a search's winner, given that scores also vary by chance."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from img2prompt.report.search.trial_rows import (
    TooFew,
    TrialRow,
    by_setting,
    key,
    mean_score,
    score_at,
    scored,
    seed_deviation,
)


@dataclass(frozen=True)
class Winner:
    """The first setting of a search, compared with the others after `epochs` epochs."""

    row: TrialRow
    epochs: int
    scores: list[float]
    """Scores of its seeds."""
    runner_up: TrialRow | None
    """First seed of the best other setting; None: no other setting reached `epochs`."""
    runner_scores: list[float]
    """Scores of the runner-up's seeds."""
    rivals: int
    """Number of other settings that reached `epochs`."""
    noise: float
    """Standard deviation of a score between seeds; NaN: unknown."""
    source: str
    """Origin of `noise`: "seeds", "surface" or "" (unknown)."""
    beats: float
    """Probability that its true mean is above the runner-up's; NaN: unknown."""
    first: float
    """Probability that it is the best of all settings compared; NaN: unknown."""
    optimism: float
    """Expected excess of a score that is chosen for being the highest; NaN: unknown."""

    @property
    def mean(self) -> float:
        """Mean score of its seeds."""
        return float(np.mean(self.scores))

    @property
    def lead(self) -> float:
        """Mean score minus the runner-up's; negative where repeats reversed the order."""
        return self.mean - float(np.mean(self.runner_scores))


def winner(
    rows: Sequence[TrialRow],
    surface: tuple[float, int] | None = None,
    draws: int = 4000,
    seed: int = 0,
) -> Winner:
    """Compare the first row's setting with all others by a parametric bootstrap.

    Each draw gives every setting a mean around its own with the seeds' pooled deviation, which is
    itself drawn from its chi-square distribution. Where no seed was repeated, `surface` is used
    instead: the deviation about the response surface and its degrees of freedom. It contains the
    surface's own error too, so it understates the certainty. Settings are compared after the most
    epochs that the winner and another setting both have.

    Raises:
        TooFew: no trial has a score.
    """
    if not scored(rows[:1]):
        raise TooFew("No trial has a score.")
    best = key(rows[0])
    epochs = _epochs_in_common(rows, best)
    groups = by_setting(rows, epochs)
    others = [name for name in groups if name != best]
    second = max(others, key=lambda name: mean_score(groups[name], epochs), default="")
    noise, freedom, source = _noise(rows, epochs, surface)
    odds = _odds(groups, epochs, (best, second), (noise, freedom), draws, seed)
    return Winner(
        row=rows[0],
        epochs=epochs,
        scores=[score_at(row, epochs) for row in groups[best]],
        runner_up=groups[second][0] if second else None,
        runner_scores=[score_at(row, epochs) for row in groups.get(second, [])],
        rivals=len(others),
        noise=noise,
        source=source,
        beats=odds[0],
        first=odds[1],
        optimism=odds[2],
    )


def _epochs_in_common(rows: Sequence[TrialRow], best: str) -> int:
    """Return the most epochs that the first row and another setting both have."""
    own = len(rows[0]["epochs"])
    others = [len(row["epochs"]) for row in rows if key(row) != best and row["epochs"]]
    return min(own, max(others, default=own))


def _noise(
    rows: Sequence[TrialRow], epochs: int, surface: tuple[float, int] | None
) -> tuple[float, int, str]:
    """Return the deviation between seeds, its degrees of freedom, and where it is from."""
    deviation, freedom = seed_deviation(rows, epochs)
    if freedom:
        return deviation, freedom, "seeds"
    return (*surface, "surface") if surface else (deviation, 0, "")


def _odds(
    groups: Mapping[str, Sequence[TrialRow]],
    epochs: int,
    pair: tuple[str, str],
    noise: tuple[float, int],
    draws: int,
    seed: int,
) -> tuple[float, float, float]:
    """Return P(first of the pair above second), P(first above all), and the optimism.

    NaN without a second setting or without a degree of freedom.
    """
    if not pair[1] or not noise[1]:
        return math.nan, math.nan, math.nan
    counts = np.array([len(group) for group in groups.values()])
    means = np.array([mean_score(group, epochs) for group in groups.values()])
    best, second = (list(groups).index(name) for name in pair)
    rng = np.random.default_rng(seed)
    deviation = noise[0] * np.sqrt(noise[1] / rng.chisquare(noise[1], size=(draws, 1)))
    drawn = means + deviation / np.sqrt(counts) * rng.normal(size=(draws, len(means)))
    top = drawn.argmax(axis=1)
    beats = float(np.mean(drawn[:, best] > drawn[:, second]))
    optimism = float(np.mean(drawn.max(axis=1) - means[top]))
    return beats, float(np.mean(top == best)), optimism
