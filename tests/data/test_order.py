from itertools import pairwise

import numpy as np
import pytest

from img2prompt.data.order import (
    WINDOW,
    epoch_order,
    first_rows,
    rows_in_share,
    steps_per_epoch,
    worker_rows,
)

SIZES = [
    np.array([], np.int64),
    np.array([1]),
    np.array([5]),
    np.array([3, 0, 4]),
    np.full(7, 6),
    np.random.default_rng(0).integers(1, 9, 3 * WINDOW + 11),
]


@pytest.mark.parametrize("sizes", SIZES, ids=len)
def test_an_epoch_is_a_permutation_of_all_rows(sizes: np.ndarray) -> None:
    for seed, epoch in [(0, 0), (0, 1), (7, 3)]:
        order = epoch_order(sizes, seed, epoch)
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(sizes.sum()))


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    sizes = np.full(10, 8)
    first = epoch_order(sizes, 3, 5)
    np.random.seed(0)
    assert np.array_equal(epoch_order(sizes, 3, 5), first)
    orders = [epoch_order(sizes, seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({order.tobytes() for order in orders}) == 16


def test_the_order_stays_what_it_was() -> None:
    """A killed run goes on in the order that an earlier version of this package drew."""
    assert epoch_order(np.array([3, 2, 4]), 0, 0).tolist() == [0, 2, 3, 7, 5, 8, 1, 6, 4]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_shares_of_all_workers_join_to_the_global_batch(workers: int) -> None:
    order = epoch_order(np.full(9, 7), 0, 0)
    size = 8
    steps = steps_per_epoch(len(order), size)
    assert steps == 7
    joined = [
        np.concatenate([worker_rows(order, step, size, rank, workers) for rank in range(workers)])
        for step in range(steps)
    ]
    assert [len(batch) for batch in joined] == [size] * steps
    assert np.array_equal(np.concatenate(joined), order[: steps * size])


def test_unequal_shares_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        worker_rows(np.arange(20), 0, 8, 0, 3)


@pytest.mark.parametrize(
    ("rows", "size", "steps"), [(0, 4, 0), (3, 4, 0), (4, 4, 1), (11, 4, 2), (12, 4, 3)]
)
def test_steps_are_full_batches(rows: int, size: int, steps: int) -> None:
    assert steps_per_epoch(rows, size) == steps


def test_a_window_holds_whole_groups_and_each_group_is_in_one_window() -> None:
    sizes = np.random.default_rng(1).integers(1, 9, 2 * WINDOW + 20)
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    order = group_of[epoch_order(sizes, 2, 0)]
    _, first = np.unique(order, return_index=True)
    by_appearance = np.argsort(first)
    start = 0
    for window in np.split(by_appearance, [WINDOW, 2 * WINDOW]):
        end = start + sizes[window].sum()
        assert set(order[start:end]) == set(window)
        start = end
    assert start == len(order)


def test_rows_and_groups_are_mixed() -> None:
    sizes = np.full(200, 8)
    order = epoch_order(sizes, 0, 0)
    assert np.mean(np.diff(order) == 1) < 0.02
    first = np.unique(order[: 8 * WINDOW] // 8)  # a window's groups come from everywhere
    assert first.min() < 20
    assert first.max() > 180
    assert len(np.unique(order[:32] // 8)) > 20  # a batch of 32 from many groups


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


def test_the_first_rows_stay_what_they_were() -> None:
    assert first_rows(np.array([3, 2, 4, 1]), 0.7, 0).tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert rows_in_share(100, 0.29) == 29
