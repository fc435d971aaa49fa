"""Runs under Ray Train. A start takes seconds, so the tests of this file share runs."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.compute as pc
import pytest
import torch
from tiny import Trained, assert_close, config_of, run_loop

from img2prompt.artifact import Artifact
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import PlanConfig, TrainConfig
from img2prompt.data.vectors import matrix
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import (
    WEIGHTS,
    learned_state,
    load_prompt_model,
    read_learned_state,
)
from img2prompt.model.towers.build import open_tower
from img2prompt.storage import exists, join, read_bytes
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs, build_model, open_rows
from img2prompt.train.preflight import worker_count

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPO = Path(__file__).parents[2]
EPOCHS = 3


def history_of(run: Artifact) -> list[dict[str, Any]]:
    return json.loads(read_bytes(run.path(train.HISTORY)))


def curve_of(run: Artifact) -> list[tuple[float, float]]:
    """Training loss and validation cosine of each epoch."""
    return [(row["train_loss"], row["val_cosine"]) for row in history_of(run)]


def shared(tower: str, name: str, workers: int, zero_stage: int, width: int = 0) -> TrainConfig:
    """A fine-tune by DeepSpeed in float32; all of them have the same global batches."""
    return config_of(
        tower,
        width=width,
        name=name,
        start_from="" if width else "probe",
        engine__kind="deepspeed",
        engine__workers=workers,
        engine__zero_stage=zero_stage,
        optim__epochs=EPOCHS,
        optim__batch_size=32,
        optim__lr=3e-4,
        optim__head_lr=5e-4,
    )


@pytest.fixture(scope="module")
def inputs(prepared, embedded: Artifact) -> TrainInputs:
    return TrainInputs(prepared.shards, embedded)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of all runs of this file."""
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def probe(inputs: TrainInputs, tiny_tower: str, runs: str) -> Artifact:
    config = config_of(
        tiny_tower,
        PlanConfig(),
        name="probe",
        optim__epochs=10,
        optim__batch_size=32,
        optim__head_lr=1e-2,
        optim__clip_norm=1.0,
    )
    return train.run(config, inputs, join(f"file://{runs}", "probe"))


@pytest.fixture(scope="module")
def tuned(
    inputs: TrainInputs, probe: Artifact, tiny_tower: str, runs: str
) -> Callable[[int, int, int], Artifact]:
    """Fine-tunes by workers, ZeRO stage and head width, each made once."""
    made: dict[str, Artifact] = {}

    def make(workers: int, zero_stage: int, width: int = 0) -> Artifact:
        name = f"{workers}-{zero_stage}-{width}"
        if name not in made:
            config = shared(tiny_tower, name, workers, zero_stage, width)
            own = TrainInputs(inputs.shards, start=None if width else probe)
            made[name] = train.run(config, own, join(runs, name))
        return made[name]

    return make


def test_a_probe_beats_the_mean_vector(inputs: TrainInputs, probe: Artifact) -> None:
    train_targets, val_targets = (
        matrix(inputs.shards.read_tables(f"{split}/")["target"]) for split in ("train", "val")
    )
    mean = train_targets.mean(axis=0)
    floor = float((val_targets @ mean).mean() / np.linalg.norm(mean))
    curve = curve_of(probe)
    assert len(curve) == 10
    assert curve[-1][0] < curve[0][0]
    assert probe.counts["val_cosine"] > floor + 0.005


def test_a_run_keeps_the_weights_of_its_best_epoch(inputs: TrainInputs, probe: Artifact) -> None:
    history = history_of(probe)
    best = max(history, key=lambda row: row["val_cosine"])
    assert probe.counts["best_epoch"] == best["epoch"]
    assert probe.counts["val_cosine"] == best["val_cosine"]
    assert [row["epoch"] for row in history] == list(range(1, 11))
    head = read_learned_state(probe)
    assert inputs.features is not None
    table = inputs.features.read_tables("val/").filter(pc.field("view") == "plain")
    found = matrix(table["feature"]).astype(np.float64)
    predicted = found @ head["head.weight"].double().numpy().T + head["head.bias"].numpy()
    targets = matrix(inputs.shards.read_tables("val/")["target"])
    cosines = (predicted * targets).sum(1) / np.linalg.norm(predicted, axis=1)
    assert cosines.mean() == pytest.approx(best["val_cosine"], abs=1e-6)


def test_a_finished_folder_contains_no_leftovers(probe: Artifact) -> None:
    assert probe.names() == [train.HISTORY, WEIGHTS]
    assert not exists(join(probe.uri, "ray"))
    assert not exists(join(probe.uri, "receipts"))


def test_ray_train_gives_the_weights_of_this_process(
    inputs: TrainInputs, probe: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "IN_PROCESS_FLOP", 0)
    config = TrainConfig.from_json(json.dumps(probe.config))
    made = train.run(config, inputs, str(tmp_path / "probe"))
    assert curve_of(made) == curve_of(probe)
    expected = read_learned_state(probe)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in read_learned_state(made).items())


def by_hand(config: TrainConfig, inputs: TrainInputs) -> Trained:
    """Train the same run by plain torch in this process."""
    plain = config.replace({"engine.kind": "plain", "engine.workers": 1, "engine.zero_stage": 1})
    made = Trained([], [], build_model(plain, inputs))
    rows = (open_rows(plain, inputs, split) for split in ("train", "val"))
    return run_loop(plain, *rows, run=made)


def assert_same_run(found: Artifact, expected: Trained) -> None:
    curve = [(row["train_loss"], row["val_cosine"]) for row in expected.reported]
    assert len(curve) == EPOCHS
    assert curve[-1][0] < curve[0][0]
    for ours, theirs in zip(curve_of(found), curve, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    best = found.counts["best_epoch"] - 1
    assert_close(read_learned_state(found), dict(expected.saved[best].engine.model), atol=1e-4)


def test_two_workers_give_the_curve_of_one(
    inputs: TrainInputs, probe: Artifact, tiny_tower: str, tuned
) -> None:
    own = TrainInputs(inputs.shards, start=probe)
    assert_same_run(tuned(2, 1), by_hand(shared(tiny_tower, "x", 1, 1), own))


def test_a_wide_head_gives_the_curve_of_one_worker_too(
    inputs: TrainInputs, tiny_tower: str, tuned
) -> None:
    own = TrainInputs(inputs.shards)
    assert_same_run(tuned(2, 2, 48), by_hand(shared(tiny_tower, "x", 1, 1, 48), own))


def test_a_fine_tune_starts_with_the_head_of_its_probe(
    inputs: TrainInputs, probe: Artifact, tiny_tower: str, tuned
) -> None:
    head = read_learned_state(probe)
    assert set(head) == {"head.weight", "head.bias"}
    config = shared(tiny_tower, "x", 1, 1)
    model = build_model(config, TrainInputs(inputs.shards, start=probe))
    assert all(torch.equal(learned_state(model)[name], head[name]) for name in head)
    fresh = build_model(config, TrainInputs(inputs.shards))
    assert not torch.equal(learned_state(fresh)["head.weight"], head["head.weight"])
    first = history_of(tuned(2, 1))[0]["val_cosine"]
    assert first > probe.counts["val_cosine"] - 0.01


def test_a_finished_run_predicts_as_it_was_validated(inputs: TrainInputs, tuned) -> None:
    run = tuned(2, 1)
    rows = open_rows(TrainConfig.from_json(json.dumps(run.config)), inputs, "val")
    batch = rows.fetch(np.arange(len(rows)))
    with torch.no_grad():
        predicted = load_prompt_model(run)(torch.from_numpy(batch.inputs)).double().numpy()
    cosines = (predicted * batch.targets).sum(1) / np.linalg.norm(predicted, axis=1)
    assert cosines.mean() == pytest.approx(run.counts["val_cosine"], abs=1e-5)


def train_workers() -> list[psutil.Process]:
    """Ray Train's workers of this process's own cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in process.name() + "".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_fit", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine.workers": 5}, "this needs 5 CPUs, the cluster has 4 at most"),
        ({"optim.batch_size": 1}, r"batch_size is 1; allowed with 2 workers: 2 or more"),
        ({"optim.batch_size": 4096}, r"batch_size is 4096; allowed with \d+ training rows: 1 to"),
        ({"plan.lora_rate": 1.0}, r"lora_rate 1\.0 and nfz_rate 0\.25 overlap"),
        ({"head.width": 8}, r"probe does not fit this config:(\n.*)*missing head\.0\.weight"),
        ({"plan.lora_rate": 0.0, "plan.nfz_rate": 0.0}, "is a probe and reads features: run the"),
    ],
)
@pytest.mark.usefixtures("nothing_starts")
def test_what_cannot_be_trained_is_refused_at_once(
    inputs: TrainInputs,
    probe: Artifact,
    tiny_tower: str,
    tmp_path: Path,
    change: dict,
    message: str,
) -> None:
    config = shared(tiny_tower, "run", 2, 1).replace(change)
    with pytest.raises(UserError, match=message):
        train.run(config, TrainInputs(inputs.shards, start=probe), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@torch.no_grad()
def another_tower(tower: str, folder: Path) -> str:
    """Checkpoint of a tower of the same shape."""
    other = open_tower(TowerConfig(weights=tower))
    other.vision.post_layernorm.bias += 1
    other.save(folder / "other", torch.float32)
    return str(folder / "other")


@pytest.mark.usefixtures("nothing_starts")
def test_pictures_and_features_of_another_tower_are_refused(
    inputs: TrainInputs, tiny_tower: str, tmp_path: Path
) -> None:
    probe = config_of(another_tower(tiny_tower, tmp_path), PlanConfig())
    with pytest.raises(UserError, match="was made by another tower than"):
        train.run(probe, inputs, str(tmp_path / "run"))
    changes = {"tower.image_size": 64, "tower.resize_positions": True}
    larger = config_of(tiny_tower).replace(changes)
    with pytest.raises(UserError, match="pictures of 32 pixels, the tower reads 64"):
        train.run(larger, TrainInputs(inputs.shards), str(tmp_path / "run"))


@pytest.mark.usefixtures("nothing_starts")
def test_a_start_from_another_tower_or_other_data_is_refused(
    inputs: TrainInputs, probe: Artifact, tiny_tower: str, tmp_path: Path
) -> None:
    config = shared(another_tower(tiny_tower, tmp_path), "run", 2, 1)
    with pytest.raises(UserError, match="is a head for another tower than"):
        train.run(config, TrainInputs(inputs.shards, start=probe), str(tmp_path / "run"))
    others = dataclasses.replace(inputs.shards, uri="elsewhere", inputs={})
    config = shared(tiny_tower, "run", 2, 1)
    with pytest.raises(UserError, match="made from other shards than elsewhere holds now"):
        train.run(config, TrainInputs(others, start=probe), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_run_is_refused(
    inputs: TrainInputs, probe: Artifact, tiny_tower: str, tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tuned(2, 1)
    monkeypatch.setattr(train, "_fit", None)
    own = TrainInputs(inputs.shards, start=probe)
    assert train.run(TrainConfig.from_json(json.dumps(run.config)), own, run.uri) == run
    other = shared(tiny_tower, "other", 2, 1).replace({"optim.lr": 1e-3, "seed": 4})
    with pytest.raises(UserError) as caught:
        train.run(other, TrainInputs(inputs.shards), run.uri)
    message = str(caught.value)
    for line in (
        "config.name: saved '2-1-0', requested 'other'",
        "config.optim.lr: saved 0.0003, requested 0.001",
        "config.seed: saved 0, requested 4",
        f"inputs.start: saved '{probe.fingerprint}', requested None",
    ):
        assert f"  {line}\n" in message


def test_worker_count_follows_config_and_cluster(cluster, tiny_tower: str) -> None:
    assert worker_count(shared(tiny_tower, "x", 3, 1)) == 3
    assert worker_count(shared(tiny_tower, "x", 0, 1)) == 2
    assert worker_count(config_of(tiny_tower, engine__workers=0)) == 1
