"""Share of the variance of scores that each setting explains: a functional ANOVA of the trials.

Shares by parameter and by pair are the fANOVA of Hutter, Hoos and Leyton-Brown (ICML 2014). They
fit a random forest; a search of some tens of trials is too small for one: it gives noise a share,
and its shares are never 0, so no parameter can be shown to have no effect. Here a second-order
response surface is fitted by least squares (Box and Wilson, JRSS B 13, 1951), whose fANOVA has a
closed form. The share that noise alone would give is subtracted, as in omega squared (Hays,
Statistics, 1963), so a parameter without effect has an expected share of 0. Optuna's evaluators
have neither pairs nor intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from img2prompt.report.search.surface import Fit, Surface, choose_surface, varying
from img2prompt.report.search.trial_rows import (
    TooFew,
    TrialRow,
    by_setting,
    mean_score,
    seed_deviation,
)

SAMPLES = 400
"""Bootstrap draws."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Term:
    """A parameter or a pair of parameters, and its share of the variance.

    The share of a pair is its effect beyond the sum of the two parameters.
    """

    names: tuple[str, ...]
    share: Estimate

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the share excludes 0."""
        return self.share.low > 0


@dataclass(frozen=True)
class Importance:
    """Shares of the variance of the settings' scores after `epochs` epochs."""

    epochs: int
    settings: int
    terms: list[Term]
    """Parameters and pairs, the largest share first."""
    unexplained: float
    """Share that the surface does not explain."""
    seeds: float
    """Share of the variation between seeds; NaN where no seed was repeated."""
    residual: float
    """Standard deviation of the settings' scores about the surface, in cosine."""
    freedom: int
    """Degrees of freedom of `residual`."""
    model: str
    """Description of the fitted surface."""


def importance(
    rows: Sequence[TrialRow], epochs: int, samples: int = SAMPLES, seed: int = 0
) -> Importance:
    """Return the share of each parameter that varies, and of each pair.

    A setting's score is the mean of its seeds. Intervals are the 2.5 and 97.5 % quantiles of a
    bootstrap of the settings' residuals about the surface (Freedman, Annals of Statistics 9, 1981);
    the residuals contain the variation between seeds and the surface's errors.

    Raises:
        TooFew: fewer settings than a surface needs, no parameter varies, or all scores are equal.
    """
    groups = list(by_setting(rows, epochs).values())
    scores = np.array([mean_score(group, epochs) for group in groups])
    columns = varying([group[0] for group in groups])
    surface = choose_surface(columns, len(groups))
    if np.ptp(scores) < 1e-12:
        raise TooFew(f"All {len(groups)} settings have the same score.")
    fit = surface.fit(scores)
    draws = _bootstrap(surface, fit, samples, seed)
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    terms = [
        Term(names, Estimate(float(share), float(low[i]), float(high[i])))
        for i, (names, share) in enumerate(zip(surface.names, fit.shares[0], strict=True))
    ]
    return Importance(
        epochs,
        len(groups),
        sorted(terms, key=lambda term: -term.share.value),
        float(fit.variance[0] / fit.total[0]),
        _seed_share(rows, epochs, groups, float(fit.total[0])),
        math.sqrt(fit.variance[0]),
        surface.freedom,
        surface.model,
    )


def _bootstrap(surface: Surface, fit: Fit, samples: int, seed: int) -> np.ndarray:
    """Return shares (samples, terms) with resampled residuals.

    The design stays fixed: resampled settings would often give a surface that cannot be fitted.
    """
    rng, rows = np.random.default_rng(seed), len(surface.design)
    # The fit makes residuals smaller than the noise: the terms absorb a part of it.
    wider = fit.residuals[0] * math.sqrt(rows / surface.freedom)
    drawn = surface.fit(fit.fitted + rng.choice(wider, size=(samples, rows)))
    return (drawn.parts - fit.bias) / np.maximum(drawn.total - fit.bias.sum(), 1e-300)[:, None]


def _seed_share(
    rows: Sequence[TrialRow], epochs: int, groups: Sequence[Sequence[TrialRow]], total: float
) -> float:
    """Return the variance of the settings' means due to seeds, divided by the total."""
    deviation, freedom = seed_deviation(rows, epochs)
    if not freedom:
        return math.nan
    return float(deviation**2 * np.mean([1 / len(group) for group in groups]) / total)
