from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest

from img2prompt.data.order import (
    LANES,
    WINDOW,
    epoch_batches,
    first_rows,
    lane_count,
    rows_in_share,
    steps_per_epoch,
    worker_share,
)

UNEVEN = np.random.default_rng(0).integers(0, 17, 300)
"""Rows of 300 groups, some of them empty."""


@pytest.mark.parametrize("batch_size", [1, 4, 6, 7])
@pytest.mark.parametrize(
    "sizes", [[], [1], [5], [3, 0, 4], [6] * 7, [40], UNEVEN.tolist()], ids=len
)
def test_no_row_comes_twice_and_less_than_a_batch_is_left_out(
    sizes: list[int], batch_size: int
) -> None:
    for seed, epoch in [(0, 0), (0, 1), (7, 3)]:
        batches = epoch_batches(np.array(sizes, np.int64), seed, epoch, batch_size)
        assert batches.dtype == np.int64
        assert batches.shape == (sum(sizes) // batch_size, batch_size)
        assert len(np.unique(batches)) == batches.size
        assert set(batches.flat) <= set(range(sum(sizes)))


def test_every_row_has_its_turn_in_some_epoch() -> None:
    """Also where one group holds all rows, as with cached features."""
    for sizes in ([70], [10] * 7):
        seen = [epoch_batches(np.array(sizes), 0, epoch, 16) for epoch in range(12)]
        assert set(np.concatenate(seen).flat) == set(range(70))


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    sizes = np.full(10, 8)
    first = epoch_batches(sizes, 3, 5, 4)
    np.random.seed(0)
    assert np.array_equal(epoch_batches(sizes, 3, 5, 4), first)
    orders = [epoch_batches(sizes, seed, epoch, 4) for seed in range(4) for epoch in range(4)]
    assert len({order.tobytes() for order in orders}) == 16


def test_the_order_is_unchanged() -> None:
    """A killed run resumes in the order that an earlier version of this package drew."""
    found = epoch_batches(np.array([3, 2, 4, 0, 5]), 0, 0, 4)
    assert found.tolist() == [[8, 1, 3, 9], [5, 0, 4, 13], [6, 7, 2, 11]]


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_the_shares_of_all_workers_join_to_the_global_batch(workers: int) -> None:
    batch = epoch_batches(np.full(9, 7), 0, 0, 8)[3]
    shares = [worker_share(batch, rank, workers) for rank in range(workers)]
    assert np.array_equal(np.concatenate(shares), batch)
    assert {len(share) for share in shares} <= {8 // workers, -(-8 // workers)}


def test_a_worker_without_a_row_is_an_assertion() -> None:
    with pytest.raises(AssertionError):
        worker_share(np.arange(4), 0, 5)


@pytest.mark.parametrize(
    ("rows", "size", "steps"), [(0, 4, 0), (3, 4, 0), (4, 4, 1), (11, 4, 2), (12, 4, 3)]
)
def test_steps_are_full_batches(rows: int, size: int, steps: int) -> None:
    assert steps_per_epoch(rows, size) == steps


@pytest.mark.parametrize(
    ("size", "lanes"), [(1, 1), (12, 12), (64, 64), (96, 48), (100, 50), (134, 2), (1024, 64)]
)
def test_lanes_divide_the_batch(size: int, lanes: int) -> None:
    assert lane_count(size) == lanes


def reads(sizes: np.ndarray, batches: np.ndarray, rank: int, workers: int) -> tuple[int, int]:
    """Groups that a worker reads if it keeps each until its rows are used, and most at a time."""
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    left, held, count, most = sizes.copy(), OrderedDict(), 0, 0
    for batch in batches:
        for group in group_of[worker_share(batch, rank, workers)]:
            count += group not in held
            held[group] = True
            left[group] -= 1
            if left[group] == 0:
                del held[group]
        most = max(most, len(held))
    return count, most


@pytest.mark.parametrize("batch_size", [48, 100, 256])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_all_workers_together_read_each_group_about_once(workers: int, batch_size: int) -> None:
    sizes = np.random.default_rng(1).integers(30, 65, 600)
    batches = epoch_batches(sizes, 0, 0, batch_size)
    found = [reads(sizes, batches, rank, workers) for rank in range(workers)]
    assert sum(count for count, _ in found) <= 1.1 * len(sizes)
    assert max(most for _, most in found) <= 3 * max(LANES, WINDOW) * (1 / workers + 1 / 8)


def test_few_groups_cost_no_more_than_a_read_a_lane() -> None:
    sizes = np.full(5, 40)
    batches = epoch_batches(sizes, 0, 0, 32)
    assert reads(sizes, batches, 0, 1)[0] == 5
    assert sum(reads(sizes, batches, rank, 4)[0] for rank in range(4)) <= 5 + 4


def test_groups_come_from_all_over_and_go_to_other_lanes_in_each_epoch() -> None:
    sizes, share = np.full(400, 16), 64 // 4
    group_of = np.repeat(np.arange(400), sizes)
    first, second = (group_of[epoch_batches(sizes, 0, epoch, 64)] for epoch in (0, 1))
    for batches in (first, second):  # of one worker in four
        early = batches[:20, :share]
        assert early.min() < 40
        assert early.max() > 360
    kept = np.intersect1d(first[:, :share], second[:, :share])
    assert 10 < len(kept) < 50  # 400 / 16 are to be expected


def test_batches_are_nearly_as_mixed_as_those_of_a_uniform_permutation() -> None:
    """Neighbours in a shard (pictures of one prompt) are as good as never in one batch."""
    sizes, size = np.full(1500, 64), 256
    group_of = np.repeat(np.arange(1500), sizes)
    ours = epoch_batches(sizes, 0, 0, size)
    uniform = np.random.default_rng(0).permutation(sizes.sum()).reshape(-1, size)
    groups = [[len(np.unique(group_of[batch])) for batch in order] for order in (ours, uniform)]
    assert np.mean(groups[0]) > 0.45 * np.mean(groups[1])
    assert np.min(groups[0]) > 0.15 * size
    place = np.empty(sizes.sum(), np.int64)
    place[ours.ravel()] = np.arange(ours.size) // size
    together = np.mean(place[1:] == place[:-1])
    assert together < 0.03
    means = ours.mean(axis=1) / sizes.sum()  # where in the data a batch comes from
    assert abs(means.mean() - 0.5) < 0.01
    assert means.std() < 2 * (uniform.mean(axis=1) / sizes.sum()).std()


def test_rows_of_one_group_are_shuffled_like_any_permutation() -> None:
    """Cached features are one group: the numbers of neighbours in the order do not depend."""
    order = epoch_batches(np.array([6400]), 0, 0, 64).ravel()
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(6400), order)[0, 1]) < 0.05


def test_a_smaller_share_of_the_rows_is_part_of_a_larger_one() -> None:
    sizes = np.random.default_rng(1).integers(1, 9, 40)
    total = int(sizes.sum())
    parts = [first_rows(sizes, share, seed=4) for share in (0.01, 0.29, 0.5, 1.0)]
    assert [len(part) for part in parts] == [total // 100, total * 29 // 100, total // 2, total]
    for small, large in pairwise(parts):
        assert set(small) <= set(large)
        assert np.all(np.diff(large) > 0)
    assert first_rows(sizes, 0.5, seed=5).tolist() != parts[2].tolist()
    ends = np.cumsum(sizes)
    counts = np.bincount(np.searchsorted(ends, parts[2], side="right"), minlength=len(sizes))
    assert np.sum((counts > 0) & (counts < sizes)) <= 1, "groups are read whole"


def test_the_first_rows_are_unchanged() -> None:
    assert first_rows(np.array([3, 2, 4, 1]), 0.7, 0).tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert rows_in_share(100, 0.29) == 29
