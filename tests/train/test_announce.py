"""The log line before a run starts."""

import logging
from pathlib import Path

import pytest
from tiny import FINETUNE, config_of

from img2prompt.config.prepare import ShardConfig
from img2prompt.config.train import PlanConfig, TrainConfig
from img2prompt.draft import Draft
from img2prompt.model.towers.build import read_shape
from img2prompt.train import estimate
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs


@pytest.fixture
def announced(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return the line for a config with two workers, without asking a cluster for GPUs."""
    draft = Draft.open(str(tmp_path / "shards"), "shards", ShardConfig(size=32), {})
    inputs = TrainInputs(draft.publish(train=77))
    caplog.set_level(logging.INFO)

    def announce(config: TrainConfig, gpus: bool = False) -> str:
        monkeypatch.setattr(estimate, "has_gpus", lambda: gpus)
        caplog.clear()
        train._announce(config, read_shape(config.tower), inputs, workers=2)
        return caplog.messages[-1]

    return announce


def test_a_fine_tune_logs_its_plan_and_cost(announced, tiny_tower: str) -> None:
    line = announced(config_of(tiny_tower, FINETUNE, width=8))
    assert line.startswith(
        "run: frozen 0-0 (1), LoRA 1-2 (2), trained 3-3 (1); 2 worker(s): 77 rows"
    )
    learn = 2 * 8 * 32 * 4 + (4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32) + 2 * 32
    learn += 32 * 8 + 2 * 8 + 8 * 384 + 384
    assert f"{learn / 1e6:.2f}M of " in line
    assert "GFLOP a row: " in line
    assert "activations of 8 rows" in line  # half of the batch of 16


def test_a_probe_does_not_count_the_tower(announced, tiny_tower: str) -> None:
    line = announced(config_of(tiny_tower, PlanConfig()))
    assert "frozen 0-3 (4), LoRA none, trained none" in line
    assert "0.01M of 0.01M parameters learn (100.0%)" in line


def test_gpus_compute_in_half_precision_unless_configured(announced, tiny_tower: str) -> None:
    lines = {
        announced(config_of(tiny_tower, FINETUNE, engine__precision=precision), gpus=True)
        for precision in ("auto", "bf16")
    }
    exact = announced(config_of(tiny_tower, FINETUNE, engine__precision="fp32"), gpus=True)
    assert len(lines) == 1
    assert exact not in lines
