"""The rows of each batch, as a pure function of seed, epoch and step for any number of workers.

Row groups are the unit of reading: some megabytes of a shard in one request to an object store. An
epoch deals all groups, in a new random order, to up to LANES lanes with equal numbers of rows. A
lane mixes the rows of neighbouring groups, and each global batch takes equally many rows of each
lane. A worker reads a part of each batch, hence its own lanes, so together the workers read each
group about once: a group is read twice only where a lane ends in it or belongs to two workers.

Maintained libraries were considered. mosaicml-streaming 0.13 has such an order for any number of
workers (its "canonical nodes" are our lanes), but pins transformers below 5 and reads a format of
its own; litdata's state belongs to a number of workers (its issues 248 and 251), and its format is
its own too; Ray Data's iterator cannot resume inside an epoch. Plain Parquet and 60 lines can.
"""

import numpy as np

LANES = 64
"""Largest number of lanes; fewer workers than lanes read several lanes each."""

WINDOW = 64
"""Row groups that are mixed with each other at a time, over all lanes; at least two per lane."""


def epoch_batches(group_sizes: np.ndarray, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """Return the rows of an epoch's global batches: int64 (steps, batch_size), no row twice.

    Groups hold consecutive row numbers. Rows that fill no batch are omitted, others each epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    steps = steps_per_epoch(int(group_sizes.sum()), batch_size)
    rows, positions = _deal(group_sizes, rng)
    lanes, used = lane_count(batch_size), steps * batch_size
    if steps == 0:
        return np.empty((0, batch_size), np.int64)
    rows, positions = rows[:used].reshape(lanes, -1), positions[:used].reshape(lanes, -1)
    mixed = np.take_along_axis(rows, _mix(positions, max(2, WINDOW // lanes), rng), axis=1)
    return mixed.reshape(lanes, steps, -1).swapaxes(0, 1).reshape(steps, batch_size)


def _deal(group_sizes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return all rows, by groups in a random order, and the position of each row's group in it.

    The rows of a group are shuffled, so that the part that a lane's end cuts off is random.
    """
    filled = np.flatnonzero(group_sizes)
    position_of_group = np.zeros(len(group_sizes), np.int64)
    position_of_group[rng.permutation(filled)] = np.arange(len(filled))
    positions = np.repeat(position_of_group, group_sizes)
    rows = np.argsort(positions + rng.random(len(positions)))
    return rows, positions[rows]


def _mix(positions: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """Return for each lane (lanes, rows) the order in which it yields its rows.

    A row waits for a random part of `window` groups, so a lane has about that many groups open, and
    opens one when it is done with another. Every second lane runs backwards: two lanes that share a
    cut group need it at the same time, and one worker reads it once for both.
    """
    number = positions - positions[:, :1]
    last = number[:, -1:].copy()
    number[1::2] = last[1::2] - number[1::2]
    begin = np.clip(number - window / 2, 0, np.maximum(last + 1 - window, 0))
    return np.argsort(begin + window * rng.random(positions.shape), axis=1)


def lane_count(batch_size: int) -> int:
    """Return the largest number up to LANES that divides the batch size."""
    return max(lanes for lanes in range(1, LANES + 1) if batch_size % lanes == 0)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of full batches in an epoch; the remaining rows are not used in it."""
    return rows // batch_size


def rows_in_share(rows: int, share: float) -> int:
    """Return the number of rows in a share of `rows` rows."""
    return int(rows * share + 1e-9)  # 100 * 0.29 = 28.999999999999996


def first_rows(group_sizes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a share of all rows (int64, ascending), as whole groups but for one.

    A larger share with the same seed contains it.
    """
    starts = np.concatenate([[0], np.cumsum(group_sizes)[:-1]])
    groups = np.random.default_rng(seed).permutation(len(group_sizes))
    rows = [np.arange(starts[group], starts[group] + group_sizes[group]) for group in groups]
    return np.sort(np.concatenate(rows)[: rows_in_share(int(group_sizes.sum()), share)])


def worker_share(batch: np.ndarray, rank: int, workers: int) -> np.ndarray:
    """Return one worker's rows of a global batch; shares differ by at most one row."""
    assert 0 <= rank < workers <= len(batch)
    return batch[rank * len(batch) // workers : (rank + 1) * len(batch) // workers]
