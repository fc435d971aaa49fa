"""Answers by fold, of baselines and probes, compared with each one made from the other folds."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_features import FILES, WIDTH, write, write_groups
from tiny import TINY

from img2prompt.artifact import Artifact
from img2prompt.config.predict import EvaluateConfig
from img2prompt.config.train import TrainConfig
from img2prompt.data.shards import SPLITS
from img2prompt.data.vectors import matrix, unit_rows
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.predict.crossvalidate import CrossValidation, check_folds
from img2prompt.predictors.blend import BlendedRuns, BlendWeights
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.neighbours import NearestNeighbours
from img2prompt.predictors.trained import TrainedRun
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.train.fold_probes import probes_by_fold
from img2prompt.train.folds import FoldedFeatures, folds_of_prompts
from img2prompt.train.job import TrainInputs

CONFIG = EvaluateConfig(folds=4, seed=3)
RIDGE = TINY.replace({"optim.solver": "ridge", "optim.ridge_strengths": [0.01, 1.0]})


def prepared_of(inputs: TrainInputs) -> PreparedData:
    """Return the shards and groups; the stages before are not read."""
    assert inputs.groups is not None
    groups = inputs.groups
    return PreparedData(groups, groups, groups, groups, inputs.shards)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TrainInputs:
    return write(tmp_path_factory.mktemp("features"), views=("plain", "flip"))


@pytest.fixture(scope="module")
def pictures(inputs: TrainInputs) -> pa.Table:
    return pa.concat_tables([inputs.shards.read_tables(f"{split}/") for split in SPLITS])


@pytest.fixture(scope="module")
def folds(inputs: TrainInputs, pictures: pa.Table) -> CrossValidation:
    assert inputs.features is not None
    return CrossValidation(CONFIG, prepared_of(inputs), inputs.features, pictures)


@pytest.fixture(scope="module")
def fold(inputs: TrainInputs, pictures: pa.Table) -> np.ndarray:
    """Return the fold of each picture."""
    assert inputs.groups is not None
    fold_of = folds_of_prompts(inputs.groups, CONFIG.folds, SPLITS, CONFIG.seed)
    return np.array([fold_of[prompt_id] for prompt_id in pictures["prompt_id"].to_pylist()])


def features_of(inputs: TrainInputs, view: str) -> np.ndarray:
    assert inputs.features is not None
    tables = [inputs.features.read_tables(f"{split}/").to_pylist() for split in SPLITS]
    return np.array([r["feature"] for rows in tables for r in rows if r["view"] == view])


def run_of(folder: Path, config: TrainConfig) -> TrainedRun:
    return TrainedRun(Draft.open(str(folder), "train", config, {}).publish(), name=config.name)


def test_the_mean_vector_is_that_of_the_other_folds(
    inputs: TrainInputs, pictures: pa.Table, folds: CrossValidation, fold: np.ndarray
) -> None:
    vectors = folds.predict(MeanVector(inputs.shards, name="mean"))
    targets = matrix(pictures["target"])
    assert set(fold) == set(range(CONFIG.folds))
    for number in range(CONFIG.folds):
        expected = np.tile(targets[fold != number].mean(axis=0), ((fold == number).sum(), 1))
        np.testing.assert_allclose(vectors[fold == number], expected, atol=1e-6)


def test_neighbours_are_pictures_of_the_other_folds(
    inputs: TrainInputs, pictures: pa.Table, folds: CrossValidation, fold: np.ndarray
) -> None:
    assert inputs.features is not None
    vectors = folds.predict(NearestNeighbours(inputs.features, inputs.shards, 1, name="knn"))
    targets, rows = matrix(pictures["target"]), unit_rows(features_of(inputs, "plain"))
    similar = rows @ rows.T
    similar[fold[:, None] == fold] = -2
    np.testing.assert_allclose(vectors, targets[similar.argmax(axis=1)], atol=1e-5)


def test_probes_answer_for_the_fold_that_they_have_not_seen(
    inputs: TrainInputs, pictures: pa.Table, fold: np.ndarray, tmp_path: Path
) -> None:
    assert inputs.features is not None
    assert inputs.groups is not None
    config = dataclasses.replace(CONFIG, views=("plain", "flip"))
    folds = CrossValidation(config, prepared_of(inputs), inputs.features, pictures)
    vectors = folds.predict(run_of(tmp_path, RIDGE))
    fold_of = folds_of_prompts(inputs.groups, CONFIG.folds, SPLITS, CONFIG.seed)
    data = FoldedFeatures(inputs.features, inputs.shards, fold_of, CONFIG.folds)
    for number, probe in enumerate(probes_by_fold(RIDGE, data, WIDTH)):
        answers = []
        for view in config.views:
            rows = torch.from_numpy(features_of(inputs, view)[fold == number]).float()
            with torch.inference_mode():
                answers.append(unit_rows(probe(rows).numpy()))
        np.testing.assert_allclose(vectors[fold == number], np.mean(answers, axis=0), atol=1e-5)
    assert len(vectors) == sum(map(sum, FILES.values()))


def test_too_few_groups_are_refused(
    inputs: TrainInputs, pictures: pa.Table, tmp_path: Path
) -> None:
    assert inputs.features is not None
    groups = write_groups(tmp_path, [0] * 30)
    table = groups.read_table("rows-00000.parquet")
    kept = table["split"].to_numpy() == "train"
    draft = Draft.open(str(tmp_path / "one"), "groups", EvaluateConfig(), {})
    draft.write_table("rows-00000.parquet", table.filter(kept))
    prepared = dataclasses.replace(prepared_of(inputs), groups=draft.publish())
    with pytest.raises(UserError, match="has 1 similarity groups; cross-validation needs 3"):
        CrossValidation(CONFIG, prepared, inputs.features, pictures)


def test_a_fold_without_pictures_is_skipped(
    inputs: TrainInputs, pictures: pa.Table, tmp_path: Path
) -> None:
    assert inputs.features is not None
    assert inputs.groups is not None
    table = inputs.groups.read_table("rows-00000.parquet")
    rows = [
        {"prompt_id": f"lost-{number}", "kept": True, "group": 5000, "split": "train"}
        for number in range(200)
    ]
    lost = pa.Table.from_pylist(rows, schema=table.schema)
    draft = Draft.open(str(tmp_path / "lost"), "groups", EvaluateConfig(), {})
    draft.write_table("rows-00000.parquet", pa.concat_tables([table, lost]))
    prepared = dataclasses.replace(prepared_of(inputs), groups=draft.publish())
    folds = CrossValidation(CONFIG, prepared, inputs.features, pictures)
    specs = [
        MeanVector(inputs.shards, name="mean"),
        NearestNeighbours(inputs.features, inputs.shards, 3, name="knn"),
        run_of(tmp_path / "run", RIDGE),
    ]
    for spec in specs:
        vectors = folds.predict(spec)
        lengths = np.linalg.norm(vectors, axis=1)
        assert np.isfinite(lengths).all()
        assert lengths.min() > 0.01


def features_with_views(features: Artifact, *views: str) -> Artifact:
    return dataclasses.replace(features, config={**features.config, "views": list(views)})


def test_fine_tunes_other_towers_and_missing_views_are_refused(
    inputs: TrainInputs, tmp_path: Path
) -> None:
    assert inputs.features is not None
    features = dataclasses.replace(
        features_with_views(inputs.features, "plain", "flip"), inputs={"tower": "one"}
    )
    probe, tuned = TINY, TINY.replace({"plan.nfz_rate": 0.5})
    for config, tower, said in (
        (probe, "one", None),
        (probe, "two", "it trains its tower, or has another one"),
        (tuned, "one", "it trains its tower, or has another one"),
    ):
        folder = tmp_path / f"{config.plan.nfz_rate}{tower}"
        run = Draft.open(str(folder), "train", config, {"tower": tower}).publish()
        spec = TrainedRun(run, name="run")
        if said is None:
            check_folds(CONFIG, features, [spec])
        else:
            with pytest.raises(UserError, match=said):
                check_folds(CONFIG, features, [spec])
    blend = BlendedRuns(run, (), BlendWeights(np.ones((0, 384)), np.zeros(384)), name="blend")
    with pytest.raises(UserError, match="blend is a predictor that folds do not fit anew"):
        check_folds(CONFIG, features, [blend])
    with pytest.raises(UserError, match="views are plain, flip; allowed with folds: those of"):
        check_folds(
            dataclasses.replace(CONFIG, views=("plain", "flip")),
            features_with_views(inputs.features, "plain"),
            [],
        )


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_folds_are_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"folds is {count}; allowed: 0 .off., or 3 or more"):
        EvaluateConfig(folds=count)
