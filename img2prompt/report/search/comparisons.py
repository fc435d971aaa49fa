"""LoRA against unfreezing at equal cost, and head widths: settings that differ in one thing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from img2prompt.report.search.effects import Estimate
from img2prompt.report.search.trial_rows import (
    TooFew,
    TrialRow,
    by_setting,
    key,
    lora_share,
    mean_score,
)

PLAN = ("lora_rate", "nfz_rate")
WIDTH = "head_width"
TOLERANCE = 0.05
"""Largest relative difference in FLOP between two plans of equal cost."""
APART = 0.2
"""Least difference in the share of LoRA between two plans of a pair."""
SETTINGS = 6
"""Fewest settings in pairs for an interval."""
BANDS = 4
"""Bands of cost."""
_WEIGHTS_AT_ONCE = 1 << 22
"""Bootstrap weights (draws times pairs) in memory at a time."""


@dataclass(frozen=True)
class Band:
    """Score of all LoRA minus score of all unfrozen, from pairs of plans of nearly equal cost."""

    flop: tuple[float, float]
    """Smallest and largest FLOP per picture in the band."""
    difference: Estimate
    pairs: int
    settings: int


@dataclass(frozen=True)
class EqualCost:
    """LoRA against unfreezing after `epochs` epochs."""

    epochs: int
    all: Band
    bands: list[Band]
    """Bands of cost with enough settings, the cheapest first."""


@dataclass(frozen=True)
class _Pair:
    """Differences between two settings, the first minus the second."""

    one: int
    two: int
    share: float
    """Difference in the share of LoRA."""
    score: float
    cost: float
    """Difference in the log of FLOP."""
    flop: float
    """Mean FLOP of the two."""


def equal_cost(
    rows: Sequence[TrialRow], epochs: int, samples: int = 2000, seed: int = 0
) -> EqualCost:
    """Compare LoRA with unfreezing among plans whose FLOP per picture differ by 5 % at most.

    Two settings are a pair when all but the plan is equal, their cost is equal, and their shares of
    LoRA (of the layers that learn) differ by 0.2 or more. The difference is the slope, through the
    origin, of the score difference over the share difference, with the remaining difference in the
    log of cost as a second variable: the change from all unfrozen to all LoRA. Intervals are from a
    bootstrap over settings, because pairs share settings.

    Raises:
        TooFew: fewer than 6 settings are in pairs.
    """
    groups = [g for g in by_setting(rows, epochs).values() if not math.isnan(lora_share(g[0]))]
    pairs = _pairs(groups, epochs)
    whole = _band(pairs, samples, seed)
    edges = np.quantile([pair.flop for pair in pairs], np.linspace(0, 1, BANDS + 1)[1:-1])
    numbers = np.searchsorted(edges, [pair.flop for pair in pairs])
    bands = []
    for number in range(BANDS):
        inside = [pair for pair, own in zip(pairs, numbers, strict=True) if own == number]
        if _settings(inside) >= SETTINGS:
            bands.append(_band(inside, samples, seed))
    return EqualCost(epochs, whole, bands)


def _pairs(groups: Sequence[Sequence[TrialRow]], epochs: int) -> list[_Pair]:
    scores = [mean_score(group, epochs) for group in groups]
    shares = [lora_share(group[0]) for group in groups]
    flop = [float(group[0]["flop"]) for group in groups]
    others = [key(group[0], PLAN) for group in groups]
    return [
        _Pair(
            one=a,
            two=b,
            share=shares[a] - shares[b],
            score=scores[a] - scores[b],
            cost=math.log(flop[a] / flop[b]),
            flop=(flop[a] + flop[b]) / 2,
        )
        for a, b in combinations(range(len(groups)), 2)
        if others[a] == others[b]
        and abs(flop[a] - flop[b]) <= TOLERANCE * max(flop[a], flop[b])
        and abs(shares[a] - shares[b]) >= APART
    ]


def _settings(pairs: Sequence[_Pair]) -> int:
    """Return the number of different settings in pairs."""
    return len({index for pair in pairs for index in (pair.one, pair.two)})


def _band(pairs: Sequence[_Pair], samples: int, seed: int) -> Band:
    settings = _settings(pairs)
    if settings < SETTINGS:
        raise TooFew(
            f"{settings} settings have a partner of equal cost with another mix of LoRA and "
            f"unfreezing; at least {SETTINGS} are needed."
        )
    names, ends = np.unique([(p.one, p.two) for p in pairs], return_inverse=True)
    ends = ends.reshape(-1, 2)
    rng, count = np.random.default_rng(seed), len(names)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=samples)
    parts = np.array_split(drawn, math.ceil(samples * len(pairs) / _WEIGHTS_AT_ONCE))
    slopes = [_slopes(pairs, part[:, ends[:, 0]] * part[:, ends[:, 1]]) for part in parts]
    low, high = np.nanpercentile(np.concatenate(slopes), [2.5, 97.5])
    value = float(_slopes(pairs, np.ones((1, len(pairs))))[0])
    flop = [pair.flop for pair in pairs]
    return Band(
        (min(flop), max(flop)), Estimate(value, float(low), float(high)), len(pairs), settings
    )


def _slopes(pairs: Sequence[_Pair], weights: np.ndarray) -> np.ndarray:
    """Return the slope of score over share at equal cost (samples,), by weighted least squares.

    `weights` (samples, N). The slope is NaN where a draw has no pair. Where all costs are equal,
    cost is not a variable.
    """
    share, score, cost = (
        np.array([getattr(pair, name) for pair in pairs]) for name in ("share", "score", "cost")
    )
    ss, sc, cc = weights @ share**2, weights @ (share * cost), weights @ cost**2
    sy, cy = weights @ (share * score), weights @ (cost * score)
    whole = ss * cc - sc**2
    both = whole > 1e-9 * ss * cc
    above, below = np.where(both, sy * cc - cy * sc, sy), np.where(both, whole, ss)
    return np.divide(above, below, out=np.full(len(below), math.nan), where=below > 0)


@dataclass(frozen=True)
class Width:
    """Score of a head width minus the score of the narrowest, all else equal."""

    width: int
    difference: Estimate
    settings: int
    """Number of settings that were tried with both widths."""


@dataclass(frozen=True)
class WidthEffect:
    """Head widths compared with the narrowest after `epochs` epochs."""

    epochs: int
    narrowest: int
    widths: list[Width]
    """Other widths that share settings with the narrowest."""


def width_effect(rows: Sequence[TrialRow], epochs: int) -> WidthEffect:
    """Compare each head width with the narrowest.

    Differences are between settings that are equal in all else; the interval is Student's for
    paired differences.

    Raises:
        TooFew: one width only, or fewer than two settings have both widths.
    """
    groups = by_setting(rows, epochs)
    widths = sorted({group[0]["setting"][WIDTH] for group in groups.values()})
    if len(widths) < 2:
        raise TooFew("Only one head width was tried.")
    score: dict[int, dict[str, float]] = {width: {} for width in widths}
    for group in groups.values():
        other = key(group[0], (WIDTH,))
        score[group[0]["setting"][WIDTH]][other] = mean_score(group, epochs)
    narrow, effects = score[widths[0]], []
    for width in widths[1:]:
        gaps = [value - narrow[other] for other, value in score[width].items() if other in narrow]
        if len(gaps) > 1:
            effects.append(Width(width, _paired(gaps), len(gaps)))
    if not effects:
        raise TooFew("Fewer than two settings were tried with two head widths and all else equal.")
    return WidthEffect(epochs, widths[0], effects)


def _paired(gaps: Sequence[float]) -> Estimate:
    mean, error = float(np.mean(gaps)), float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps))
    reach = float(stats.t.ppf(0.975, len(gaps) - 1)) * error
    return Estimate(mean, mean - reach, mean + reach)
