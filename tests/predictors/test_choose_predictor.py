from pathlib import Path

import pytest
from small_artifacts import write_features, write_run, write_shards
from tiny import FINETUNE

from img2prompt.errors import UserError
from img2prompt.predictors.build import choose_predictor
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.neighbours import NearestNeighbours
from img2prompt.predictors.trained import TrainedRun
from img2prompt.workspace import Workspace


def test_names_of_runs_and_built_in_predictors(tmp_path: Path, tiny_tower: str) -> None:
    out, shards = str(tmp_path), write_shards(tmp_path / "shards")
    features = write_features(tmp_path / "features", shards, tiny_tower)
    run = write_run(tmp_path / "runs" / "lora", shards, tiny_tower, FINETUNE)
    assert choose_predictor("lora", Workspace(out)) == TrainedRun(run, name="lora")
    assert choose_predictor("mean", Workspace(out)) == MeanVector(shards, name="mean")
    expected = NearestNeighbours(features, shards, 7, name="neighbours")
    assert choose_predictor("neighbours", Workspace(out), neighbours=7) == expected


def test_missing_runs_shards_and_features_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runs/lora holds no finished train"):
        choose_predictor("lora", Workspace(str(tmp_path)))
    with pytest.raises(UserError, match="shards holds no finished shards"):
        choose_predictor("mean", Workspace(str(tmp_path)))
    write_shards(tmp_path / "shards")
    with pytest.raises(UserError, match="features holds no finished features"):
        choose_predictor("neighbours", Workspace(str(tmp_path)))
