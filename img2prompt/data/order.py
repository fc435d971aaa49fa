"""Which rows make up each batch: a pure function of seed, epoch and step.

Row groups are shuffled, then rows inside a window of groups. So the rows of a batch come from a few
groups only, each group is read about once an epoch, and the order knows nothing of workers. The
two-level shuffle is that of streaming data sets (WebDataset, Mosaic Streaming); seeding it by
(seed, epoch) makes it repeatable.
"""

import numpy as np

WINDOW = 64
"""Row groups that are mixed with each other."""


def epoch_order(group_sizes: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A permutation of all rows (int64); groups hold consecutive row numbers."""
    rng = np.random.default_rng([seed, epoch])
    starts = np.concatenate([[0], np.cumsum(group_sizes)[:-1]])
    groups = rng.permutation(len(group_sizes))
    order = []
    for first in range(0, len(groups), WINDOW):
        window = groups[first : first + WINDOW]
        rows = np.concatenate([np.arange(starts[g], starts[g] + group_sizes[g]) for g in window])
        order.append(rng.permutation(rows))
    return np.concatenate(order) if order else np.empty(0, np.int64)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Full batches in an epoch; what is left over waits for another epoch's order."""
    return rows // batch_size


def worker_rows(
    order: np.ndarray, step: int, batch_size: int, rank: int, workers: int
) -> np.ndarray:
    """One worker's rows of global batch `step`; `workers` must divide `batch_size`."""
    assert batch_size % workers == 0
    share = batch_size // workers
    start = step * batch_size + rank * share
    return order[start : start + share]


def rows_in_share(rows: int, share: float) -> int:
    """How many of `rows` rows a share is."""
    return int(rows * share + 1e-9)  # 100 * 0.29 = 28.999999999999996


def first_rows(group_sizes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A share of all rows (int64, rising), as whole groups but for one; larger shares hold it."""
    starts = np.concatenate([[0], np.cumsum(group_sizes)[:-1]])
    groups = np.random.default_rng(seed).permutation(len(group_sizes))
    rows = [np.arange(starts[group], starts[group] + group_sizes[group]) for group in groups]
    return np.sort(np.concatenate(rows)[: rows_in_share(int(group_sizes.sum()), share)])
