"""Which rows make up each batch: a pure function of seed, epoch and step, whoever reads them.

Row groups are the unit of reading: one stretch of a shard, some megabytes, one request to an object
store. An epoch deals all groups, shuffled anew, to up to LANES lanes of equally many rows. A lane
mixes the rows of neighbouring groups, and each global batch takes equally many rows of each lane.
A worker is given a part of each batch, hence its own lanes, so together the workers read each group
about once: a group is read twice only where a lane ends inside it or belongs to two workers.

Maintained libraries were weighed. mosaicml-streaming 0.13 has such an order for any number of
workers (its "canonical nodes" are our lanes), but pins transformers below 5 and reads a format of
its own; litdata's state belongs to a number of workers (its issues 248 and 251), and its format is
its own too; Ray Data's iterator cannot go on inside an epoch. Plain Parquet and 60 lines can.
"""

import numpy as np

LANES = 64
"""Most lanes; as many of them share a worker as there are workers too few."""

WINDOW = 64
"""Row groups that are mixed with each other at a time, over all lanes; at least two in each."""


def epoch_batches(group_sizes: np.ndarray, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """Rows of an epoch's global batches: int64 (steps, batch_size), no row twice.

    Groups hold consecutive row numbers. Rows that fill no batch are left out, others each epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    steps = steps_per_epoch(int(group_sizes.sum()), batch_size)
    rows, places = _deal(group_sizes, rng)
    lanes, kept = lane_count(batch_size), steps * batch_size
    if steps == 0:
        return np.empty((0, batch_size), np.int64)
    rows, places = rows[:kept].reshape(lanes, -1), places[:kept].reshape(lanes, -1)
    mixed = np.take_along_axis(rows, _mix(places, max(2, WINDOW // lanes), rng), axis=1)
    return mixed.reshape(lanes, steps, -1).swapaxes(0, 1).reshape(steps, batch_size)


def _deal(group_sizes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All rows, group after group in a random order, and each one's place of its group in it.

    The rows of a group are shuffled, so that what a lane's end cuts off is a random part.
    """
    filled = np.flatnonzero(group_sizes)
    place_of_group = np.zeros(len(group_sizes), np.int64)
    place_of_group[rng.permutation(filled)] = np.arange(len(filled))
    places = np.repeat(place_of_group, group_sizes)
    rows = np.argsort(places + rng.random(len(places)))
    return rows, places[rows]


def _mix(places: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """For each lane (lanes, rows) the order in which it gives its rows.

    A row waits for a random part of `window` groups, so a lane has about that many groups open, and
    opens one when it is done with another. Every second lane runs backwards: two lanes that share a
    cut group need it at the same time, and one worker reads it once for both.
    """
    number = places - places[:, :1]
    last = number[:, -1:].copy()
    number[1::2] = last[1::2] - number[1::2]
    begin = np.clip(number - window / 2, 0, np.maximum(last + 1 - window, 0))
    return np.argsort(begin + window * rng.random(places.shape), axis=1)


def lane_count(batch_size: int) -> int:
    """The largest number up to LANES that divides the batch."""
    return max(lanes for lanes in range(1, LANES + 1) if batch_size % lanes == 0)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Full batches in an epoch; what is left over waits for another epoch's order."""
    return rows // batch_size


def rows_in_share(rows: int, share: float) -> int:
    """How many of `rows` rows a share is."""
    return int(rows * share + 1e-9)  # 100 * 0.29 = 28.999999999999996


def first_rows(group_sizes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A share of all rows (int64, rising), as whole groups but for one; larger shares hold it."""
    starts = np.concatenate([[0], np.cumsum(group_sizes)[:-1]])
    groups = np.random.default_rng(seed).permutation(len(group_sizes))
    rows = [np.arange(starts[group], starts[group] + group_sizes[group]) for group in groups]
    return np.sort(np.concatenate(rows)[: rows_in_share(int(group_sizes.sum()), share)])


def worker_share(batch: np.ndarray, rank: int, workers: int) -> np.ndarray:
    """One worker's rows of a global batch; shares differ by one row where they cannot be equal."""
    assert 0 <= rank < workers <= len(batch)
    return batch[rank * len(batch) // workers : (rank + 1) * len(batch) // workers]
