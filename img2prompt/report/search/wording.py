"""Numbers, settings and verdicts as text: the Jinja2 filters of the report's templates."""

from collections.abc import Mapping, Sequence
from typing import Any

from img2prompt.report.search.effects import Estimate
from img2prompt.report.search.trial_rows import TrialRow
from img2prompt.report.wording import percent, plural

CLEAR, LIKELY = 0.95, 0.8
"""Probabilities from which a winner is called so."""


def level(value: object) -> str:
    """Return the value of a setting as text."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting(row: TrialRow) -> str:
    """Return the setting of a trial as names and values."""
    return ", ".join(f"{name} {level(value)}" for name, value in row["setting"].items())


def term_name(names: Sequence[str]) -> str:
    """Return the name of a parameter or of a pair."""
    return " with ".join(names)


def width_name(width: int) -> str:
    """Return the name of a head of that width; 0 is a head without a hidden layer."""
    return f"{width:,} units" if width else "linear"


def certainty(probability: float) -> str:
    """Return the word for the probability that the winner is better than the runner-up."""
    if probability >= CLEAR:
        return "Clear"
    return "Likely" if probability >= LIKELY else "Undecided"


def signed(estimate: Estimate) -> str:
    """Return a difference of scores with its 95 % interval."""
    return f"{estimate.value:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f})"


def verdict(estimate: Estimate, above: str, below: str) -> str:
    """Return `above` or `below` where the interval of a difference excludes 0."""
    if estimate.low > 0:
        return above
    return below if estimate.high < 0 else "no difference that is clear of chance"


def si(number: float) -> str:
    """Return a number with its SI prefix: 2.5e15 is "2.5P"."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{prefix}"
    return f"{number:.3g}"


FILTERS: Mapping[str, Any] = {
    function.__name__: function
    for function in (setting, term_name, width_name, plural, percent, certainty, signed, verdict)
}
