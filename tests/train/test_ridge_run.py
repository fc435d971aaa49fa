"""The training stage with a probe in closed form, and what uses its run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import config_of

from img2prompt.artifact import Artifact
from img2prompt.config.predict import EvaluateConfig
from img2prompt.config.train import PlanConfig, TrainConfig
from img2prompt.data.shards import FeatureRows
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import WEIGHTS, read_learned_state
from img2prompt.predict import evaluate
from img2prompt.predictors.trained import TrainedRun
from img2prompt.storage import exists, join, read_bytes
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def ridge(tower: str, **changes) -> TrainConfig:
    return config_of(tower, PlanConfig(), name="ridge", optim__solver="ridge", **changes)


@pytest.fixture(scope="module")
def inputs(prepared, embedded: Artifact) -> TrainInputs:
    return TrainInputs(prepared.shards, embedded, groups=prepared.groups)


@pytest.fixture(scope="module")
def run(inputs: TrainInputs, tiny_tower: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return train.run(ridge(tiny_tower), inputs, f"file://{tmp_path_factory.mktemp('run')}")


def test_a_probe_in_closed_form_is_a_finished_run(inputs: TrainInputs, run: Artifact) -> None:
    assert run.names() == [train.HISTORY, WEIGHTS]
    assert not exists(join(run.uri, "receipts"))
    history = json.loads(read_bytes(run.path(train.HISTORY)))
    best = max(history, key=lambda row: row["fold_cosine"])
    assert {**best, "seconds": run.counts["seconds"]} == run.counts
    assert inputs.features is not None
    rows, head = FeatureRows(inputs.features, inputs.shards, "val"), read_learned_state(run)
    predicted = rows.features.astype(np.float64) @ head["head.weight"].double().numpy().T
    predicted += head["head.bias"].numpy()
    cosines = (predicted * rows.targets).sum(axis=1) / np.linalg.norm(predicted, axis=1)
    assert cosines.mean() == pytest.approx(run.counts["val_cosine"], abs=1e-6)
    mean = inputs.shards.read_tables("train/")["target"].to_pylist()
    floor = (rows.targets @ np.mean(mean, axis=0)).mean() / np.linalg.norm(np.mean(mean, axis=0))
    assert run.counts["val_cosine"] > floor + 0.005


def test_tasks_give_the_result_of_one_process(
    inputs: TrainInputs,
    run: Artifact,
    tiny_tower: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "SPREAD_ROWS", 0)
    spread = train.run(ridge(tiny_tower), inputs, str(tmp_path))
    for name, tensor in read_learned_state(run).items():
        np.testing.assert_allclose(read_learned_state(spread)[name], tensor, atol=1e-6)
    assert spread.counts["fold_cosine"] == pytest.approx(run.counts["fold_cosine"], abs=1e-9)


def test_a_finished_run_is_skipped_and_a_killed_one_starts_over(
    inputs: TrainInputs,
    run: Artifact,
    tiny_tower: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solve, out = train.solve_probe, str(tmp_path)

    def die(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "solve_probe", die)
    assert train.run(ridge(tiny_tower), inputs, run.uri) == run
    with pytest.raises(KeyboardInterrupt):
        train.run(ridge(tiny_tower), inputs, out)
    monkeypatch.setattr(train, "solve_probe", solve)
    assert train.run(ridge(tiny_tower), inputs, out).fingerprint == run.fingerprint
    assert not exists(RunFolder(out).work)


def test_evaluate_accepts_the_run(
    prepared, embedded: Artifact, inputs: TrainInputs, run: Artifact, tmp_path: Path
) -> None:
    config = EvaluateConfig(runs=("ridge",))
    runs = [TrainedRun(run, name="ridge")]
    evaluation = evaluate.run(config, prepared, embedded, runs, str(tmp_path))
    systems = json.loads(read_bytes(evaluation.path("metrics.json")))["systems"]
    assert systems["ridge"]["all"]["mean"] > systems["mean vector"]["all"]["mean"]


def test_a_fine_tune_starts_from_the_run(
    inputs: TrainInputs, run: Artifact, tiny_tower: str, tmp_path: Path
) -> None:
    config = config_of(
        tiny_tower, start_from="ridge", optim__epochs=1, optim__lr=1e-5, optim__head_lr=1e-6
    )
    tuned = train.run(config, TrainInputs(inputs.shards, start=run), str(tmp_path))
    assert tuned.inputs["start"] == run.fingerprint
    assert tuned.counts["val_cosine"] > run.counts["val_cosine"] - 0.005


def test_missing_and_foreign_groups_are_refused(
    inputs: TrainInputs, tiny_tower: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    without = TrainInputs(inputs.shards, inputs.features)
    with pytest.raises(UserError, match="ridge holds out similarity groups: give the groups"):
        train.run(ridge(tiny_tower), without, out)
    assert inputs.groups is not None
    foreign = dataclasses.replace(inputs.groups, uri="elsewhere", inputs={})
    with pytest.raises(UserError, match="made from other groups than elsewhere holds now"):
        train.run(ridge(tiny_tower), dataclasses.replace(inputs, groups=foreign), out)
    assert not (tmp_path / "run").exists()
