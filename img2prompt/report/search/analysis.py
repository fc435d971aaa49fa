"""Everything that the report says about a search, computed once and without any wording."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from img2prompt.report.search.comparisons import EqualCost, WidthEffect, equal_cost, width_effect
from img2prompt.report.search.effects import Importance, importance
from img2prompt.report.search.trial_rows import (
    TooFew,
    TrialRow,
    at_share,
    common_epochs,
    first_share,
)
from img2prompt.report.search.winner import Winner, winner

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Compared(Generic[_Result]):
    """A comparison of all trials at equal epochs, and of those that were trained further."""

    first: _Result
    later: _Result | None
    """None: no trial was trained further, or too few were."""


@dataclass(frozen=True)
class Analysis:
    """Results of a search. A `TooFew` in place of a result says what is missing for it."""

    rows: Sequence[TrialRow]
    """All trials, the best first."""
    shares: tuple[float, float]
    """Shares of the training rows on which all trials began, and on which the winner ended."""
    compared: Sequence[TrialRow]
    """The trials on the first share."""
    last: Sequence[TrialRow]
    """Trials that reached the last share, on that share."""
    epochs: int
    """Number of epochs after which `compared` are compared."""
    best: Winner
    importance: Importance | TooFew
    equal_cost: Compared[EqualCost] | TooFew
    widths: Compared[WidthEffect] | TooFew


def analyse(rows: Sequence[TrialRow]) -> Analysis:
    """Analyse the rows of trials.json, the best first.

    Raises:
        TooFew: no trial has a score.
    """
    shares = first_share(rows), rows[0]["share"] if rows else 1.0
    compared, last = at_share(rows, shares[0]), at_share(rows, shares[1])
    epochs = common_epochs(compared)
    shares_of_variance = _unless_too_few(lambda: importance(compared, epochs))
    surface = None
    if isinstance(shares_of_variance, Importance):
        surface = shares_of_variance.residual, shares_of_variance.freedom
    return Analysis(
        rows=rows,
        shares=shares,
        compared=compared,
        last=last,
        epochs=epochs,
        best=winner(last, surface),
        importance=shares_of_variance,
        equal_cost=_compare(equal_cost, compared, epochs, last),
        widths=_compare(width_effect, compared, epochs, last),
    )


def _unless_too_few(compute: Callable[[], _Result]) -> _Result | TooFew:
    try:
        return compute()
    except TooFew as reason:
        return reason


def _compare(
    compare: Callable[[Sequence[TrialRow], int], _Result],
    compared: Sequence[TrialRow],
    epochs: int,
    last: Sequence[TrialRow],
) -> Compared[_Result] | TooFew:
    first = _unless_too_few(lambda: compare(compared, epochs))
    if isinstance(first, TooFew):
        return first
    longest = max(len(row["epochs"]) for row in last)
    if longest == epochs and last == compared:
        return Compared(first, None)
    later = _unless_too_few(lambda: compare(last, longest))
    return Compared(first, None if isinstance(later, TooFew) else later)
