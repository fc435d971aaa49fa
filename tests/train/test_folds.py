"""Files of features that belong to folds."""

from pathlib import Path

from small_features import FILES, write

from img2prompt.config.prepare import ShardConfig
from img2prompt.config.train import OptimConfig
from img2prompt.data.shards import SCHEMA, SPLITS
from img2prompt.draft import Draft
from img2prompt.train.folds import FoldedFeatures, folds_of_prompts
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
