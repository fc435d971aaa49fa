"""Folds of whole groups, and the files of features that belong to them."""

from pathlib import Path

import numpy as np
from small_features import FILES, write

from img2prompt.config.prepare import ShardConfig
from img2prompt.config.train import OptimConfig
from img2prompt.data.shards import SCHEMA, SPLITS
from img2prompt.draft import Draft
from img2prompt.train.folds import FoldedFeatures, folds_of_prompts, group_folds
from img2prompt.train.job import TrainInputs
from img2prompt.train.ridge import solve_by_fold, solve_probe

RIDGE = OptimConfig(solver="ridge", ridge_folds=4, ridge_strengths=(0.1, 3.0))


def with_empty_shards(inputs: TrainInputs, folder: Path) -> TrainInputs:
    """Add a shard without rows to each split; the features job writes no file for these."""
    draft = Draft.open(str(folder), "shards", ShardConfig(size=32), {})
    for name in inputs.shards.names():
        draft.write_table(name, inputs.shards.read_table(name))
    for split in SPLITS:
        draft.write_table(f"{split}/00001-empty.parquet", SCHEMA.empty_table())
    return TrainInputs(draft.publish(train=90), inputs.features, groups=inputs.groups)


def folded(inputs: TrainInputs) -> FoldedFeatures:
    assert inputs.features is not None
    assert inputs.groups is not None
    fold_of = folds_of_prompts(inputs.groups, 4, SPLITS)
    return FoldedFeatures(inputs.features, inputs.shards, fold_of, 4)


def test_shards_without_rows_are_in_no_part_and_change_no_probe(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain")
    inputs = with_empty_shards(plain, tmp_path / "shards")
    files = [name for part in folded(inputs).parts(SPLITS) for name in part]
    assert files == [name for split in SPLITS for name in plain.shards.names(f"{split}/")]
    assert len(files) == sum(map(len, FILES.values()))
    assert solve_probe(RIDGE, inputs, map).history == solve_probe(RIDGE, plain, map).history
    ours, expected = (
        solve_by_fold(RIDGE.ridge_strengths, folded(each), SPLITS, map) for each in (inputs, plain)
    )
    for own, other in zip(ours, expected, strict=True):
        assert all(own[name].equal(other[name]) for name in other)


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
