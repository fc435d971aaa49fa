"""Folds of whole groups."""

import numpy as np

from img2prompt.train.folds import group_folds


def test_folds_keep_groups_together_and_have_equally_many_rows() -> None:
    groups = np.repeat(np.array(["b", "a", "c", "d", "e", "f"]), [6, 5, 4, 3, 2, 1])
    folds = group_folds(groups, 3, seed=0)
    assert len({(group, fold) for group, fold in zip(groups, folds, strict=True)}) == 6
    assert np.bincount(folds).tolist() == [7, 7, 7]


def test_the_seed_shuffles_groups_of_one_size() -> None:
    groups = np.arange(40)
    same, other = (group_folds(groups, 4, seed) for seed in (1, 2))
    assert np.array_equal(same, group_folds(groups, 4, seed=1))
    assert not np.array_equal(same, other)
    assert np.bincount(other).tolist() == [10] * 4


def test_there_are_no_more_folds_than_groups() -> None:
    assert group_folds(np.array(["x", "x"]), 5, seed=0).tolist() == [0, 0]
    assert sorted(group_folds(np.array([3, 8]), 5)) == [0, 1]
