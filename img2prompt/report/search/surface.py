"""Response surface that `effects` decomposes: linear and curved effects, and products of pairs.

Fitted by least squares to one score per setting (Box and Wilson, JRSS B 13, 1951). Its functional
ANOVA has a closed form: a term's variance is a quadratic form of its coefficients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from img2prompt.report.search.trial_rows import TooFew, TrialRow

SPARE = 1.5
"""Settings needed per coefficient of the surface."""
DISTINCT = 0.05
"""Share of a column's variance that earlier columns must not explain."""


def varying(rows: Sequence[TrialRow]) -> dict[str, list[Any]]:
    """Return the parameters with more than one value, and their value in each row."""
    names = list(dict.fromkeys(name for row in rows for name in row["setting"]))
    columns = {name: [row["setting"].get(name) for row in rows] for name in names}
    return {k: v for k, v in columns.items() if len({repr(x) for x in v}) > 1}


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _basis(values: Sequence[Any]) -> np.ndarray:
    """Return centred columns (N, K): ranks of numbers, or one column per further category.

    Ranks, because widths and rates are tried on scales of powers as often as on even ones.
    """
    if all(is_number(value) for value in values):
        levels = sorted(set(values))
        raw = np.array([[levels.index(value) / (len(levels) - 1) * 2.0 - 1] for value in values])
    else:
        texts = np.array([repr(value) for value in values])
        raw = np.stack([texts == level for level in sorted(set(texts))[1:]], axis=1)
    return raw - raw.mean(axis=0)


@dataclass(frozen=True)
class Columns:
    """Columns of one term of the surface."""

    names: tuple[str, ...]
    values: np.ndarray
    """(N, K)"""
    moments: np.ndarray
    """(K, K) second moments if parameters varied independently, each with the values tried: the
    measure of the fANOVA, whichever combinations were not tried."""


@dataclass(frozen=True)
class Fit:
    """Least squares fits of one surface to one or more vectors of scores (samples, N)."""

    fitted: np.ndarray
    residuals: np.ndarray
    variance: np.ndarray
    """(samples,) variance of the scores about the surface."""
    parts: np.ndarray
    """(samples, terms) variance of each term, minus `bias`."""
    bias: np.ndarray
    """(samples, terms) variance that noise alone gives each term."""

    @property
    def total(self) -> np.ndarray:
        return np.maximum(self.parts.sum(axis=1) + self.variance, 1e-300)

    @property
    def shares(self) -> np.ndarray:
        return self.parts / self.total[:, None]


class Surface:
    """Terms in centred columns, each with the quadratic form that gives its variance."""

    def __init__(self, terms: list[Columns], model: str) -> None:
        self.names, self.model = [term.names for term in terms], model
        ends = np.cumsum([1, *(term.values.shape[1] for term in terms)])
        self.spans = [slice(a, b) for a, b in pairwise(ends)]
        self.moments = [term.moments for term in terms]
        constant = np.ones((len(terms[0].values), 1))
        self.design = np.hstack([constant, *(term.values for term in terms)])
        self.solve = np.linalg.pinv(self.design)
        self.freedom = self.design.shape[0] - self.design.shape[1]

    def fit(self, scores: np.ndarray) -> Fit:
        """Fit scores (N,) or (samples, N)."""
        scores = np.atleast_2d(scores)
        coefficients = scores @ self.solve.T
        fitted = coefficients @ self.design.T
        residuals = scores - fitted
        variance = np.sum(residuals**2, axis=1) / self.freedom
        spread = self.solve @ self.solve.T
        raw = [
            np.einsum("si,ij,sj->s", coefficients[:, span], moments, coefficients[:, span])
            for span, moments in zip(self.spans, self.moments, strict=True)
        ]
        times = [
            np.sum(spread[span, span] * moments)
            for span, moments in zip(self.spans, self.moments, strict=True)
        ]
        bias = variance[:, None] * np.array(times)
        return Fit(fitted, residuals, variance, np.stack(raw, axis=1) - bias, bias)


_MODELS = (
    (True, True, "linear and curved effects, and the product of each pair"),
    (False, True, "linear effects, and the product of each pair"),
    (False, False, "linear effects only; pairs need more trials"),
)


def choose_surface(columns: dict[str, list[Any]], settings: int) -> Surface:
    """Return the richest surface that so many settings can determine.

    Raises:
        TooFew: no parameter varies, or the settings are too few for linear effects.
    """
    if not columns:
        raise TooFew("No parameter has more than one value among the trials with a score.")
    need = 0
    for curved, pairs, model in _MODELS:
        terms = _terms(columns, curved, pairs)
        need = math.ceil((1 + sum(term.values.shape[1] for term in terms)) * SPARE) + 2
        if settings >= need:
            return Surface(_distinct(terms), model)
    raise TooFew(
        f"{settings} settings are too few for parameters {', '.join(columns)}; {need} are needed."
    )


def _terms(columns: dict[str, list[Any]], curved: bool, pairs: bool) -> list[Columns]:
    """Return linear columns first, then curves, then products: the order of priority."""
    linear = {name: _basis(values) for name, values in columns.items()}
    terms = [_term((name,), part) for name, part in linear.items()]
    if curved:
        squares = {
            name: linear[name] ** 2 - np.mean(linear[name] ** 2)
            for name, values in columns.items()
            if all(map(is_number, values)) and len(set(values)) > 2
        }
        terms += [_term((name,), part) for name, part in squares.items()]
    for one, two in combinations(columns, 2) if pairs else ():
        product = linear[one][:, :, None] * linear[two][:, None, :]
        moments = np.kron(_moments(linear[one]), _moments(linear[two]))
        terms.append(Columns((one, two), product.reshape(len(product), -1), moments))
    return terms


def _moments(part: np.ndarray) -> np.ndarray:
    return part.T @ part / len(part)


def _term(names: tuple[str, ...], part: np.ndarray) -> Columns:
    return Columns(names, part, _moments(part))


def _distinct(terms: list[Columns]) -> list[Columns]:
    """Return one entry per name, without columns that earlier columns nearly determine.

    On a grid of rates without its invalid corner, some curves and products are nearly equal.
    """
    span = np.ones((len(terms[0].values), 1)) / math.sqrt(len(terms[0].values))
    merged: dict[tuple[str, ...], Columns] = {}
    for term in terms:
        kept = []
        for number, column in enumerate(term.values.T):
            own = column - span @ (span.T @ column)
            if own @ own > DISTINCT * (column @ column):
                span = np.hstack([span, (own / np.linalg.norm(own))[:, None]])
                kept.append(number)
        if not kept and term.names not in merged and len(term.names) == 1:
            raise TooFew(f"{term.names[0]} always changed together with other parameters.")
        if kept:
            part = term.values[:, kept], term.moments[np.ix_(kept, kept)]
            merged[term.names] = _joined(merged.get(term.names), Columns(term.names, *part))
    return list(merged.values())


def _joined(first: Columns | None, then: Columns) -> Columns:
    if first is None:
        return then
    return _term(first.names, np.hstack([first.values, then.values]))
