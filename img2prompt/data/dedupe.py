"""Near duplicates of unit vectors: keep the first, drop what is too close to a kept one.

The rule is greedy keep-first (the "leader" rule, the lexicographically first maximal independent
set of Blelloch, Fineman and Shun, arXiv 1202.3205): a row is dropped exactly when an earlier kept
row has a cosine at or above the threshold. Unlike "drop when any earlier row is near" (SemDeDup,
arXiv 2303.09540) it never drops a row for the sake of one that is itself gone, and unlike connected
components it does not chain.

Exact: float32 block products only find candidates, float64 decides. Memory is bounded by the block,
without a list of edges or a limit on neighbours, since only kept rows are compared with.
"""

from dataclasses import dataclass

import numpy as np

from img2prompt.data.vectors import check_unit, exact_cosine

MARGIN = 1e-5
"""Largest error allowed for a float32 dot product of unit rows (measured for 384: 1.6e-6)."""

_PAIRS_AT_ONCE = 16384


@dataclass(frozen=True)
class KeepFirst:
    """What became of every row."""

    kept: np.ndarray
    """int64: numbers of the kept rows, ascending."""
    keeper: np.ndarray
    """int64 (N,): the nearest earlier kept row of a dropped row, the own number of a kept one."""
    score: np.ndarray
    """float64 (N,): cosine to the keeper; 1.0 for a kept row."""


def keep_first(vectors: np.ndarray, threshold: float, block: int = 2048) -> KeepFirst:
    """Greedy keep-first de-duplication of float32 unit vectors (N, D), in row order.

    Row i is dropped exactly when some earlier kept row has a float64 dot product with it at or
    above `threshold`; its keeper is the kept row of the highest score, the first one among equals.
    The answer is the same for every `block` (rows compared at once).

    Raises:
        ValueError: names the row that is not finite or not of unit length (to 1e-3).
    """
    vectors = check_unit(vectors)
    search = _Search(vectors, threshold, np.arange(len(vectors)), np.full(len(vectors), -np.inf))
    kept = np.empty(0, np.int64)
    for start in range(0, len(vectors), block):
        stop = min(start + block, len(vectors))
        for first in range(0, len(kept), block):
            search.compare(start, stop, kept[first : first + block])
        kept = np.append(kept, search.scan(start, stop))
    search.score[kept] = 1.0
    return KeepFirst(kept, search.keeper, search.score)


@dataclass(frozen=True)
class _Search:
    """The best keeper of every row so far; a score of -inf means none."""

    vectors: np.ndarray
    threshold: float
    keeper: np.ndarray
    score: np.ndarray

    def _near(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return left @ right.T >= self.threshold - MARGIN

    def compare(self, start: int, stop: int, kept: np.ndarray) -> None:
        """Try `kept` rows, all before `start`, as keepers of the rows from `start` to `stop`."""
        others = self.vectors[kept]
        left, right = np.nonzero(self._near(self.vectors[start:stop], others))
        for at in range(0, len(left), _PAIRS_AT_ONCE):
            row, column = left[at : at + _PAIRS_AT_ONCE], right[at : at + _PAIRS_AT_ONCE]
            cosine = exact_cosine(self.vectors[start + row], others[column])
            sure = cosine >= self.threshold
            self._take(start + row[sure], kept[column[sure]], cosine[sure])

    def _take(self, row: np.ndarray, other: np.ndarray, cosine: np.ndarray) -> None:
        """Keep the best of these pairs for each row where it beats what the row has."""
        order = np.lexsort((other, -cosine, row))
        best = order[np.unique(row[order], return_index=True)[1]]
        best = best[cosine[best] > self.score[row[best]]]
        self.keeper[row[best]] = other[best]
        self.score[row[best]] = cosine[best]

    def scan(self, start: int, stop: int) -> np.ndarray:
        """Decide the rows from `start` to `stop` one after the other; returns those kept."""
        part = self.vectors[start:stop]
        kept = np.isneginf(self.score[start:stop])
        near = np.tril(self._near(part, part), -1)
        near[:, ~kept] = False
        for row in np.flatnonzero(near.any(axis=1)):
            others = np.flatnonzero(near[row, :row] & kept[:row])
            cosine = exact_cosine(part[others], part[row])
            sure = cosine >= self.threshold
            self._take(np.full(sure.sum(), start + row), start + others[sure], cosine[sure])
            kept[row] = np.isneginf(self.score[start + row])
        return start + np.flatnonzero(kept)
