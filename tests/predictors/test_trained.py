import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small_artifacts import pixels_of, write_features, write_run, write_shards
from tiny import FINETUNE

from img2prompt.artifact import Artifact
from img2prompt.config.train import PlanConfig
from img2prompt.errors import UserError
from img2prompt.model import inference
from img2prompt.model.prompt_model import load_prompt_model
from img2prompt.predictors.trained import TrainedRun

CPU = torch.device("cpu")
PROBE = PlanConfig()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def features(
    shards: Artifact, tiny_tower: str, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    return write_features(tmp_path_factory.mktemp("features"), shards, tiny_tower)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers in float32, also on CPUs with bfloat16."""
    monkeypatch.setattr(inference, "compute_dtype", lambda precision, device: torch.float32)


@pytest.mark.parametrize("plan", [PROBE, FINETUNE], ids=["probe", "fine-tune"])
@torch.inference_mode()
def test_answers_are_the_models_vectors(
    shards: Artifact, tiny_tower: str, tmp_path: Path, plan: PlanConfig, float32: None
) -> None:
    run, pixels = write_run(tmp_path, shards, tiny_tower, plan), pixels_of(shards, "test")
    answers = TrainedRun(run, name="run").load(CPU).predict(pixels)
    expected = load_prompt_model(run)(pixels).numpy()
    np.testing.assert_allclose(answers.vectors, expected, atol=1e-6)
    assert expected.std(axis=0).max() > 1e-3
    assert answers.texts is None
    assert answers.confidences is None


@torch.inference_mode()
def test_a_probe_answers_from_cached_features(
    shards: Artifact, features: Artifact, tiny_tower: str, tmp_path: Path, float32: None
) -> None:
    spec = TrainedRun(write_run(tmp_path, shards, tiny_tower, PROBE), name="probe")
    assert spec.reads_features(features)
    pixels = pixels_of(shards, "test")
    cached = load_prompt_model(spec.run).tower(pixels).half().float()
    by_features, by_pictures = spec.load_head(CPU).predict(cached), spec.load(CPU).predict(pixels)
    np.testing.assert_allclose(by_features.vectors, by_pictures.vectors, atol=5e-3)


def test_other_runs_and_other_towers_need_pictures(
    shards: Artifact, features: Artifact, tiny_tower: str, tmp_path: Path
) -> None:
    tuned = TrainedRun(write_run(tmp_path / "lora", shards, tiny_tower, FINETUNE), name="lora")
    assert not tuned.reads_features(features)
    probe = TrainedRun(write_run(tmp_path / "probe", shards, tiny_tower, PROBE), name="probe")
    foreign = dataclasses.replace(features, inputs={**features.inputs, "tower": "0" * 16})
    assert not probe.reads_features(foreign)


def test_other_shards_and_another_tower_are_refused(
    shards: Artifact, tiny_tower: str, tmp_path: Path
) -> None:
    spec = TrainedRun(write_run(tmp_path / "run", shards, tiny_tower, FINETUNE), name="lora")
    spec.check(shards)
    assert spec.fingerprints() == {"run": spec.run.fingerprint}
    with pytest.raises(UserError, match="was made from other shards"):
        spec.check(write_shards(tmp_path / "other", seed=1))
    foreign = dataclasses.replace(spec.run, inputs={**spec.run.inputs, "tower": "0" * 16})
    with pytest.raises(UserError, match="was trained on a tower with fingerprint 0000"):
        TrainedRun(foreign, name="lora").check(shards)
