"""Near duplicates of unit vectors: keep the first, drop what is too close to a kept one.

The rule is greedy keep-first (the "leader" rule, the lexicographically first maximal independent
set of Blelloch, Fineman and Shun, arXiv 1202.3205): a row is dropped exactly when an earlier kept
row has a cosine at or above the threshold. Unlike "drop when any earlier row is near" (SemDeDup,
arXiv 2303.09540) it never drops a row because of one that is itself dropped, and unlike connected
components it does not chain.

Exact: low precision only finds candidates (`bounds.py`), float64 decides. Memory is bounded by the
block, without a list of edges or a limit on neighbours, since only kept rows are compared with.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from img2prompt.data.similar.bounds import chunks, near_pairs
from img2prompt.data.similar.matches import BestMatches, Spread, best_matches, in_process
from img2prompt.data.vectors import check_unit

BLOCK = 32_768
"""Rows of one job, and kept rows that they are compared with."""


@dataclass(frozen=True)
class KeepFirst:
    """Result of keep-first de-duplication."""

    kept: np.ndarray
    """int64: numbers of the kept rows, ascending."""
    keeper: np.ndarray
    """int64 (N,): the nearest earlier kept row of a dropped row, the own number of a kept one."""
    score: np.ndarray
    """float64 (N,): cosine to the keeper; 1.0 for a kept row."""


def keep_first(
    vectors: np.ndarray, threshold: float, block: int = BLOCK, spread: Spread = in_process
) -> KeepFirst:
    """Greedy keep-first de-duplication of unit vectors, in row order.

    Row i is dropped exactly when some earlier kept row has a float64 dot product with it at or
    above `threshold`; its keeper is the kept row of the highest score, the first one among equals.

    Args:
        vectors: float32 unit rows (N, D); may be a memory map.
        threshold: compared with the float64 dot product.
        block: rows of a job, and kept rows that it compares them with; the answer is the same.
        spread: where jobs run. This process compares the rows within each block: about block / N of
            all pairs.

    Raises:
        ValueError: names the row that is not finite or not of unit length (to 1e-3).
    """
    pairs = near_pairs(check_unit(vectors))
    run = spread(partial(best_matches, pairs, threshold))
    best = BestMatches(pairs, threshold)
    kept = np.zeros(0, np.int64)
    for rows in chunks(np.arange(len(vectors)), block):
        for match in run((rows, some) for some in chunks(kept, block)):
            best.take(*match)
        kept = np.append(kept, _settle(best, rows))
    best.other[kept], best.score[kept] = kept, 1.0
    return KeepFirst(kept, best.other, best.score)


def _settle(best: BestMatches, rows: np.ndarray) -> np.ndarray:
    """Decide rows that were compared with all rows kept before them; return the kept ones."""
    kept = np.zeros(0, np.int64)
    for step in chunks(rows, best.pairs.tile):
        best.compare(step, kept)
        (fresh,) = best.pairs.threads.map(partial(_decide, best), [step])
        kept = np.append(kept, fresh)
    return kept


def _decide(best: BestMatches, rows: np.ndarray) -> np.ndarray:
    """Decide rows that are few enough to be compared with each other at once."""
    is_kept = np.zeros(len(best.pairs), bool)
    is_kept[rows] = best.other[rows] < 0
    for row, other in best.pairs.candidates(rows, rows[is_kept[rows]], best.floor):
        # Pairs come row by row, so almost all rows before a row of this chunk are decided.
        earlier = (other < row) & is_kept[other]
        row, other, cosine = best.pairs.at_least(row[earlier], other[earlier], best.floor)
        for a, b in zip(row.tolist(), other.tolist(), strict=True):
            if is_kept[b]:
                is_kept[a] = False
        sure = is_kept[other]
        best.take(row[sure], other[sure], cosine[sure])
    return rows[is_kept[rows]]
