"""How often the driver and a worker of a run read the weights of its tower."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from tiny import FINETUNE, config_of

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import FeaturesConfig, ShardConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import PlanConfig, TrainConfig
from img2prompt.draft import Draft
from img2prompt.model.towers import weights
from img2prompt.model.towers.build import checkpoint_stamp, open_tower, read_shape
from img2prompt.model.towers.weights import STAMP
from img2prompt.prepare.features import FREE
from img2prompt.train import preflight, worker
from img2prompt.train import run as train
from img2prompt.train.estimate import estimate
from img2prompt.train.job import TrainInputs, TrainJob, build_model


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Number of times that weights were read since the last call."""
    read, folders = weights.read_weights, []

    def counted(folder: Path, *options):
        folders.append(folder)
        return read(folder, *options)

    def count() -> int:
        number = len(folders)
        folders.clear()
        return number

    monkeypatch.setattr(weights, "read_weights", counted)
    monkeypatch.setattr("img2prompt.train.estimate.has_gpus", lambda: False)
    return count


def features_of(folder: Path, tower: TowerConfig) -> Artifact:
    inputs = {"tower": open_tower(tower).base_fingerprint}
    config = FeaturesConfig(tower=tower)
    draft = Draft.open(str(folder / "features"), "features", config, inputs, free=FREE)
    draft.write_bytes(STAMP, json.dumps({"stamp": checkpoint_stamp(tower)}).encode())
    return draft.publish()


@pytest.fixture
def inputs(tiny_tower: str, tmp_path: Path) -> TrainInputs:
    shards = Draft.open(str(tmp_path / "shards"), "shards", ShardConfig(size=32), {})
    return TrainInputs(
        shards.publish(train=77), features_of(tmp_path, TowerConfig(weights=tiny_tower))
    )


def start_driver(config: TrainConfig, inputs: TrainInputs) -> dict[str, str]:
    """What `train.run` derives from the tower before workers start."""
    made_from = preflight.fingerprints(config, inputs)
    train._announce(config, read_shape(config.tower), inputs, workers=1)
    return made_from


def start_worker(config: TrainConfig, inputs: TrainInputs, out: Path) -> None:
    """What a worker derives from the tower."""
    build_model(config, inputs)
    worker._log(TrainJob(config, inputs, str(out)), worker.OneWorker(), 0).close()


def test_a_probe_reads_no_weights(
    loads, inputs: TrainInputs, tiny_tower: str, tmp_path: Path
) -> None:
    probe = config_of(tiny_tower, PlanConfig())
    assert loads() == 1  # by the features
    made_from = start_driver(probe, inputs)
    start_worker(probe, inputs, tmp_path)
    assert loads() == 0
    assert made_from["tower"] == open_tower(probe.tower).base_fingerprint


def test_a_probe_notices_that_the_checkpoint_has_changed(
    loads, inputs: TrainInputs, tiny_tower: str, tmp_path: Path
) -> None:
    """A copy of the files is read to compare; other weights are refused."""
    folder = tmp_path / "tower"
    shutil.copytree(tiny_tower, folder)
    tower = TowerConfig(weights=str(folder))
    features = features_of(tmp_path / "again", tower)
    probe, changed = config_of(str(folder), PlanConfig()), TrainInputs(inputs.shards, features)
    loads()
    before = preflight.fingerprints(probe, changed)["tower"]
    assert loads() == 0
    (folder / "model.safetensors").touch()
    assert preflight.fingerprints(probe, changed)["tower"] == before
    assert loads() == 1
    file = folder / "model.safetensors"
    tensors = {name: tensor + 1 for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    assert preflight.fingerprints(probe, changed)["tower"] != before


def test_a_fine_tune_reads_them_once_in_each_process(
    loads, inputs: TrainInputs, tiny_tower: str, tmp_path: Path
) -> None:
    config = config_of(tiny_tower, FINETUNE)
    loads()
    start_driver(config, inputs)
    assert loads() == 1
    start_worker(config, inputs, tmp_path)
    assert loads() == 1


def test_the_estimate_reads_none(loads, tiny_tower: str) -> None:
    config = config_of(tiny_tower, FINETUNE)
    assert estimate(config, read_shape(config.tower)).learned > 0
    assert loads() == 0


def test_other_settings_of_a_probe_are_decided_by_the_weights(
    loads, inputs: TrainInputs, tiny_tower: str
) -> None:
    probe = config_of(tiny_tower, PlanConfig())
    same, resized = (
        probe.replace({"tower.image_size": 32}),
        probe.replace({"tower.image_size": 48, "tower.resize_positions": True}),
    )
    download = probe.replace({"tower.download": True})
    loads()
    known = preflight.fingerprints(probe, inputs)["tower"]
    assert preflight.fingerprints(download, inputs)["tower"] == known
    assert loads() == 0
    assert preflight.fingerprints(same, inputs)["tower"] == known
    assert preflight.fingerprints(resized, inputs)["tower"] != known
    assert loads() == 2


def test_a_fresh_tower_depends_on_the_seed_of_the_probe(
    inputs: TrainInputs, tmp_path: Path
) -> None:
    features = features_of(tmp_path / "fresh", TowerConfig(weights="fresh"))
    inputs = dataclasses.replace(inputs, features=features)
    towers = [
        preflight.fingerprints(config_of("fresh", PlanConfig(), seed=seed), inputs)["tower"]
        for seed in (0, 1)
    ]
    assert towers[0] == features.inputs["tower"] != towers[1]
