"""How sure a search can be of its winner, when trials differ by chance as well."""

import math
from collections.abc import Sequence
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
    """The first setting of the search, held against the others after `epochs` epochs."""

    row: TrialRow
    epochs: int
    scores: list[float]
    """Of its seeds."""
    runner_up: TrialRow | None
    """The best other setting that came so far."""
    runner_scores: list[float]
    rivals: int
    """Other settings that came so far."""
    noise: float
    """Standard deviation of a score from seed to seed; NaN: unknown."""
    source: str
    """Where `noise` is from: "seeds", "surface" or "" (unknown)."""
    beats: float
    """Probability that its true mean is above the runner-up's; NaN: unknown."""
    first: float
    """Probability that it is the best of all settings compared; NaN: unknown."""
    optimism: float
    """By how much a best score chosen like this overstates the truth; NaN: unknown."""


def winner(
    rows: Sequence[TrialRow],
    surface: tuple[float, int] | None = None,
    draws: int = 4000,
    seed: int = 0,
) -> Winner:
    """How sure the first row's setting is the best, by a parametric bootstrap of all settings.

    Each draw gives every setting a mean around its own with the seeds' pooled deviation, itself
    drawn from its chi-square distribution. Where no seed was repeated `surface`, the deviation
    about the importance's surface with its degrees of freedom, takes its place: it holds the seeds'
    spread and the surface's own error, so it errs on the unsure side. Compared at the most epochs
    that the winner and another setting both have.

    Raises:
        TooFew: no trial has a score.
    """
    if not scored(rows[:1]):
        raise TooFew("No trial has a score.")
    best = key(rows[0])
    reached = [len(row["epochs"]) for row in rows if key(row) != best and row["epochs"]]
    epochs = min(len(rows[0]["epochs"]), max(reached, default=len(rows[0]["epochs"])))
    groups = by_setting(rows, epochs)
    means = {name: mean_score(group, epochs) for name, group in groups.items()}
    second = max((name for name in groups if name != best), key=means.__getitem__, default=None)
    noise, freedom = seed_deviation(rows, epochs)
    source = "seeds" if freedom else ""
    if not freedom and surface is not None:
        (noise, freedom), source = surface, "surface"
    beats = first = optimism = math.nan
    if second is not None and freedom:
        counts = np.array([len(group) for group in groups.values()])
        values = np.array(list(means.values()))
        places = list(groups).index(best), list(groups).index(second)
        beats, first, optimism = _odds(values, counts, places, (noise, freedom), draws, seed)
    return Winner(
        row=rows[0],
        epochs=epochs,
        scores=[score_at(row, epochs) for row in groups[best]],
        runner_up=groups[second][0] if second else None,
        runner_scores=[score_at(row, epochs) for row in groups[second]] if second else [],
        rivals=len(groups) - 1,
        noise=noise,
        source=source,
        beats=beats,
        first=first,
        optimism=optimism,
    )


def _odds(
    means: np.ndarray,
    counts: np.ndarray,
    places: tuple[int, int],
    noise: tuple[float, int],
    draws: int,
    seed: int,
) -> tuple[float, float, float]:
    """P(first place above second), P(first place above all), and the optimism of a maximum."""
    rng = np.random.default_rng(seed)
    deviation = noise[0] * np.sqrt(noise[1] / rng.chisquare(noise[1], size=(draws, 1)))
    drawn = means + deviation / np.sqrt(counts) * rng.normal(size=(draws, len(means)))
    top = drawn.argmax(axis=1)
    beats = float(np.mean(drawn[:, places[0]] > drawn[:, places[1]]))
    optimism = float(np.mean(drawn.max(axis=1) - means[top]))
    return beats, float(np.mean(top == places[0])), optimism
