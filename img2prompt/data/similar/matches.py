"""The best match of each row: the other row with the highest cosine at or above a floor."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from img2prompt.data.similar.bounds import NearPairs, chunks, near_pairs

MatchTask = tuple[np.ndarray, np.ndarray]
"""Indices of rows, and of the others that they are compared with."""

Match = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows, their others, and float64 cosines."""

Spread = Callable[[Callable[[MatchTask], Any]], Callable[[Iterable[MatchTask]], Iterable[Any]]]
"""Takes a function and returns one that calls it for many jobs, on any machine, in any order."""

in_process: Spread = partial(partial, map)
"""Run jobs in this process, one after the other."""

_GUESSES = 512


class BestMatches:
    """The best match of each row among the others compared so far; the first of equal ones."""

    def __init__(self, pairs: NearPairs, floor: ArrayLike) -> None:
        self.pairs = pairs
        self.floor = np.broadcast_to(np.asarray(floor, np.float64), len(pairs)).copy()
        """float64 (N,): least cosine of a match; rises with the score."""
        self.other = np.full(len(pairs), -1)
        """int64 (N,): -1 where nothing reaches the floor."""
        self.score = np.full(len(pairs), -np.inf)

    def compare(self, rows: np.ndarray, others: np.ndarray) -> None:
        """Compare all rows with all others."""
        size = self.pairs.tile
        tiles = ((some, against) for against in chunks(others, size) for some in chunks(rows, size))
        for matches in self.pairs.threads.map(self._matches, tiles):
            for match in matches:
                self.take(*match)

    def _matches(self, tile: MatchTask) -> list[Match]:
        pairs, floor = self.pairs, self.floor
        return [pairs.at_least(*some, floor) for some in pairs.candidates(*tile, floor)]

    def take(self, row: np.ndarray, other: np.ndarray, cosine: np.ndarray) -> None:
        """Update the matches with the pairs that are better."""
        order = np.lexsort((other, -cosine, row))
        best = order[np.unique(row[order], return_index=True)[1]]
        row, other, cosine = row[best], other[best], cosine[best]
        tie = (cosine == self.score[row]) & (other < self.other[row])
        better = (cosine > self.score[row]) | tie
        row, cosine = row[better], cosine[better]
        self.other[row] = other[better]
        self.score[row] = self.floor[row] = cosine


def best_matches(pairs: NearPairs, floor: ArrayLike, job: MatchTask) -> Match:
    """Return the best matches of the rows of a job that have one."""
    rows, others = job
    best = BestMatches(pairs, floor)
    best.compare(rows, others)
    matched = rows[best.other[rows] >= 0]
    return matched, best.other[matched], best.score[matched]


def nearest(
    rows: np.ndarray, others: np.ndarray, block: int, spread: Spread = in_process
) -> tuple[np.ndarray, np.ndarray]:
    """Return the index (R,) and float64 cosine (R,) of the nearest other vector of each row.

    Args:
        rows: float32 unit vectors (R, D).
        others: float32 unit vectors (O, D), O >= 1.
        block: rows and others of a job; the answer is the same.
        spread: where jobs run.
    """
    # Cosines may be low, where a bound that cuts coordinates off would be too weak.
    pairs = near_pairs(np.concatenate([rows, others]), rows.shape[1] + 1)
    number = np.arange(len(pairs))
    best = BestMatches(pairs, _first_guess(pairs, number[: len(rows)], number[len(rows) :]))
    jobs = (
        (some, against)
        for some in chunks(number[: len(rows)], block)
        for against in chunks(number[len(rows) :], block)
    )
    for match in spread(partial(best_matches, pairs, best.floor))(jobs):
        best.take(*match)
    return best.other[: len(rows)] - len(rows), best.score[: len(rows)]


def _first_guess(pairs: NearPairs, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return lower bounds of each row's largest cosine from a few others: float64 (N,)."""
    floor = np.full(len(pairs), -np.inf)
    some = pairs.vectors[others[:: max(1, len(others) // _GUESSES)]].T
    for row in chunks(rows, pairs.tile):
        floor[row] = (pairs.vectors[row] @ some).max(axis=1) - pairs.margin
    return floor
