"""Split prompts into train, val and test by whole groups of similar ones, and report leaks.

Prompts joined by a chain of cosines at or above a threshold go to one split together: a random
split scores 0.02 to 0.10 too high, because near copies of its test prompts were trained on.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from img2prompt.data.similar.bounds import NearPairs, chunks, near_pairs
from img2prompt.data.similar.dedupe import BLOCK
from img2prompt.data.similar.matches import Match, MatchTask, Spread, in_process, nearest
from img2prompt.data.vectors import check_unit
from img2prompt.errors import UserError

HELD_OUT = ("val", "test")
LARGE = 0.1
"""Share of a held-out split above which one group would dominate it, so others go first."""


def components(
    vectors: np.ndarray, threshold: float, block: int = BLOCK, spread: Spread = in_process
) -> np.ndarray:
    """Label the connected components of the graph whose edges are cosines at or above `threshold`.

    Args:
        vectors: float32 unit rows (N, D).
        threshold: compared with the float64 dot product.
        block: rows and others of a job; the answer is the same.
        spread: where jobs run.

    Returns:
        int64 labels (N,), numbered from 0 in the order of each component's first row.
    """
    pairs = near_pairs(check_unit(vectors))
    blocks = list(chunks(np.arange(len(vectors)), block))
    jobs = ((rows, others) for at, rows in enumerate(blocks) for others in blocks[: at + 1])
    parent = np.arange(len(vectors))
    for edges in spread(partial(_forest, pairs, threshold))(jobs):
        _join(parent, *edges)
    roots = _roots(parent, np.arange(len(vectors)))
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def _forest(pairs: NearPairs, threshold: float, job: MatchTask) -> tuple[np.ndarray, np.ndarray]:
    """Return a spanning forest of a job's edges: at most one edge a row."""
    rows, others = job
    floor = np.broadcast_to(threshold, len(pairs))
    parent = np.arange(len(pairs))

    def edges(tile: MatchTask) -> list[Match]:
        joined = []
        for row, other in pairs.candidates(*tile, floor):
            apart = (other < row) & (_roots(parent, row) != _roots(parent, other))
            joined.append(pairs.at_least(row[apart], other[apart], floor))
        return joined

    tiles = (
        (some, against)
        for some in chunks(rows, pairs.tile)
        for against in chunks(others[others < some[-1]], pairs.tile)
    )
    for joined in pairs.threads.map(edges, tiles):
        for row, other, _ in joined:
            _join(parent, row, other)
    ends = np.union1d(rows, others)
    roots = _roots(parent, ends)
    return ends[ends != roots], roots[ends != roots]


def _roots(parent: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the first row of each row's component, and shorten the paths on the way.

    Safe beside one thread that joins: that writes only to roots, this only to other rows.
    """
    roots = parent[rows]
    while not np.array_equal(above := parent[roots], roots):
        roots = above
    below = roots != rows
    parent[rows[below]] = roots[below]
    return roots


def _join(parent: np.ndarray, row: np.ndarray, other: np.ndarray) -> None:
    """Unite the components of both ends of every edge; a component's root is its first row."""
    ends = np.stack([_roots(parent, row), _roots(parent, other)])
    ends = ends[:, ends[0] != ends[1]]
    if not ends.size:
        return
    roots, (a, b) = np.unique(ends, return_inverse=True)
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(roots), len(roots)))
    count, label = connected_components(graph, directed=False)
    first = np.full(count, len(parent))
    np.minimum.at(first, label, roots)
    parent[roots] = first[label]


def assign(
    labels: np.ndarray,
    weights: np.ndarray,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> np.ndarray:
    """Choose a split for every row, the same for all rows of a component.

    The heaviest component always trains. Of the others, a random draw of those up to a tenth of a
    held-out split fills both held-out splits; larger ones follow, the lightest first, only when
    these do not suffice. Neither held-out split is empty, and each misses its fraction by at most
    half the weight of the lightest component left to train (more only if its very first component
    is too heavy).

    Args:
        labels: int64 component numbers (N,), 0 to C - 1. Their order decides the draw with `seed`,
            so rows in a declared order give the same split wherever they came from.
        weights: positive numbers (N,), such as pictures per prompt, that the fractions count.
        val_fraction: share of the total weight.
        test_fraction: share of the total weight.
        seed: another seed, another draw.

    Returns:
        "train", "val" or "test" (N,).

    Raises:
        UserError: fewer than three components.
    """
    sizes = np.bincount(labels, weights)
    if len(sizes) < 3:
        raise UserError(
            f"all {len(labels)} prompts fall into {len(sizes)} groups of similar prompts; train, "
            "val and test need 3 or more: give more varied prompts or raise group.split_cosine"
        )
    goal = dict(zip(HELD_OUT, np.array([val_fraction, test_fraction]) * sizes.sum(), strict=True))
    queue = _queue(sizes, LARGE * min(goal.values()), seed)
    split = _fill(sizes, queue, goal)
    return split[labels]


def _queue(sizes: np.ndarray, large: float, seed: int) -> np.ndarray:
    """Return candidates for the held-out splits: small ones in random order, then large ones."""
    draw = np.random.default_rng(seed).permutation(len(sizes))
    order = np.lexsort((draw, np.where(sizes > large, sizes, 0)))
    return order[order != np.argmax(sizes)]


def _fill(sizes: np.ndarray, queue: np.ndarray, goal: dict[str, float]) -> np.ndarray:
    """Return splits (C,): one component for each held-out split, then those that fit."""
    split = np.full(len(sizes), "train", dtype="<U5")
    room = dict(goal)

    def give(component: np.intp, name: str) -> None:
        split[component] = name
        room[name] -= sizes[component]

    for component, name in zip(queue[:2], sorted(HELD_OUT, key=goal.__getitem__), strict=True):
        give(component, name)
    for component in queue[2:]:
        fits = [name for name in HELD_OUT if sizes[component] <= room[name]]
        if fits:
            give(component, max(fits, key=lambda name: room[name] / goal[name]))
    for name in HELD_OUT:
        left = queue[split[queue] == "train"]
        lightest = left[np.argmin(sizes[left])] if len(left) else None
        if lightest is not None and sizes[lightest] < 2 * room[name]:
            give(lightest, name)
    return split


def leak_report(
    train_vectors: np.ndarray,
    held_out_vectors: np.ndarray,
    train_prompts: Sequence[str],
    held_out_prompts: Sequence[str],
    worst: int = 10,
    block: int = BLOCK,
    spread: Spread = in_process,
) -> dict[str, Any]:
    """Report how similar the training prompts are to the held-out ones, ready for JSON.

    Args:
        train_vectors: float32 unit rows (T, D), T >= 1.
        held_out_vectors: float32 unit rows (H, D), H >= 1.
        train_prompts: T texts.
        held_out_prompts: H texts.
        worst: how many held-out prompts are listed beside their nearest training prompt.
        block: rows and others of a job; the answer is the same.
        spread: where jobs run.

    Returns:
        `largest_cosine`; `worst_pairs`, each with `cosine`, `held_out` and `train`; `histogram` of
        every held-out prompt's largest cosine: 40 `counts` between 41 `edges`.
    """
    other, cosine = nearest(check_unit(held_out_vectors), check_unit(train_vectors), block, spread)
    order = np.argsort(-cosine, kind="stable")[:worst]
    counts, edges = np.histogram(np.clip(cosine, -1, 1), bins=np.linspace(-1, 1, 41).round(2))
    return {
        "train": len(train_vectors),
        "held_out": len(held_out_vectors),
        "largest_cosine": float(cosine.max()),
        "worst_pairs": [
            {
                "cosine": float(cosine[row]),
                "held_out": held_out_prompts[row],
                "train": train_prompts[other[row]],
            }
            for row in order
        ],
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
