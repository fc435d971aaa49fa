"""Short runs of one worker in this process, without Ray; `test_train_run.py` compares the two."""

import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_artifacts import write_features, write_shards
from tiny import FINETUNE, config_of

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import TargetsConfig
from img2prompt.config.train import PlanConfig, TrainConfig
from img2prompt.distributed.placement import OWN_CLUSTER
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import read_learned_state
from img2prompt.train import run as train
from img2prompt.train import worker
from img2prompt.train.health import StopRequestedError
from img2prompt.train.job import TrainInputs, checkpoints

REPO = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv(OWN_CLUSTER, raising=False)


@pytest.fixture(scope="module")
def inputs(tiny_tower: str, tmp_path_factory: pytest.TempPathFactory) -> TrainInputs:
    folder = tmp_path_factory.mktemp("data")
    shards = write_shards(folder / "shards")
    return TrainInputs(shards, write_features(folder / "features", shards, tiny_tower))


def probe(tower: str, **changes) -> TrainConfig:
    """Three epochs of three steps."""
    steps = {"optim__batch_size": 4, "engine__save_every": 1, "optim__epochs": 3}
    return config_of(tower, PlanConfig(), name="probe", **{**steps, **changes})


@pytest.fixture(scope="module")
def undisturbed(
    inputs: TrainInputs, tiny_tower: str, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        out = tmp_path_factory.mktemp("undisturbed") / "run"
        return train.run(probe(tiny_tower), inputs, str(out))


def assert_same_weights(found: Artifact, expected: Artifact) -> None:
    tensors = read_learned_state(expected)
    assert found.counts["val_cosine"] == expected.counts["val_cosine"]
    assert all(torch.equal(tensor, tensors[n]) for n, tensor in read_learned_state(found).items())


HELD = """
import sys, time
from img2prompt.artifact import Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs
from img2prompt.train.loop import Loop

after_step = Loop._after_step

def hold(self, position, vote):
    assert not {"ray", "deepspeed"} & sys.modules.keys()
    after_step(self, position, vote)
    if (position.epoch, position.step) == (1, 2):
        time.sleep(1000)  # until the test kills it

Loop._after_step = hold
config, shards, features, out = sys.argv[1:]
inputs = TrainInputs(Artifact.load(shards, "shards"), Artifact.load(features, "features"))
train.run(TrainConfig.from_json(config), inputs, out)
"""


def test_a_killed_run_resumes_and_never_imported_ray(
    inputs: TrainInputs, tiny_tower: str, undisturbed: Artifact, tmp_path: Path
) -> None:
    out, config = str(tmp_path / "run"), probe(tiny_tower)
    assert inputs.features is not None
    arguments = [config.to_json(), inputs.shards.uri, inputs.features.uri, out]
    script = [sys.executable, "-c", HELD, *arguments]
    driver = subprocess.Popen(script, cwd=REPO, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 200
    while not any(name.endswith("1-000000002") for name in checkpoints(out).names()):
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    driver.kill()
    driver.communicate()
    assert_same_weights(train.run(config, inputs, out), undisturbed)


def test_a_stop_request_saves_and_the_run_resumes(
    inputs: TrainInputs,
    tiny_tower: str,
    undisturbed: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Seen:
        def __init__(self, uri: str) -> None:
            self.seen = threading.Event()
            self.seen.set()

        def close(self) -> None: ...

    out, config = str(tmp_path / "run"), probe(tiny_tower, engine__save_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "FileWatch", Seen)
        with pytest.raises(StopRequestedError, match="is saved before epoch 1, step 2"):
            train.run(config, inputs, out)
    assert len(checkpoints(out).names()) == 1
    assert_same_weights(train.run(config, inputs, out), undisturbed)


def test_a_small_step_has_one_thread_and_the_number_is_restored(
    inputs: TrainInputs, tiny_tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []

    def note(position: object) -> None:
        numbers.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(worker.CheckpointWriter, "save", lambda self, position: note(position))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    for small, threads in ((worker.SMALL_STEP, 1), (0, 3)):
        monkeypatch.setattr(worker, "SMALL_STEP", small)
        numbers.clear()
        with pytest.raises(AssertionError, match="every epoch saves one"):
            train.run(probe(tiny_tower), inputs, str(tmp_path / str(threads)))
        assert set(numbers) == {threads}
        assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_no_watchdog_outlives_a_run_that_fails(
    inputs: TrainInputs, tiny_tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk")

    closed: list[bool] = []
    monkeypatch.setattr(worker, "build_model", fail)
    monkeypatch.setattr(worker.HangWatchdog, "close", lambda self: closed.append(True))
    with pytest.raises(OSError, match="disk"):
        train.run(probe(tiny_tower), inputs, str(tmp_path / "run"))
    assert closed == [True]


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, False),
        ({"plan": FINETUNE.to_dict()}, False),
        ({"engine.kind": "deepspeed"}, True),
        ({"optim.epochs": 10**9}, True),
        ({"optim.solver": "ridge"}, False),
    ],
)
def test_a_short_run_of_one_worker_needs_no_cluster(
    inputs: TrainInputs, tiny_tower: str, changes: dict, needed: bool
) -> None:
    assert train.needs_cluster(probe(tiny_tower).replace(changes), inputs) == needed


def test_a_named_cluster_and_callbacks_need_ray_train(
    inputs: TrainInputs, tiny_tower: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = probe(tiny_tower)
    assert train.needs_cluster(config, inputs, [object()])
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert train.needs_cluster(config, inputs)


def test_the_log_says_where_a_run_is(
    inputs: TrainInputs, tiny_tower: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train.run(probe(tiny_tower, optim__epochs=1), inputs, str(tmp_path / "run"))
    assert any("in this process: 12 rows" in line for line in caplog.messages)


RECIPE = {
    "recipe__loss": "angular",
    "recipe__info_nce_weight": 0.1,
    "recipe__l2_sp": 0.1,
    "recipe__crop_area": 0.5,
    "recipe__one_per_prompt": True,
    "recipe__ema_decay": 0.5,
    "optim__layer_decay": 0.5,
    "optim__batch_size": 4,
}


def test_a_run_with_a_recipe_resumes_as_if_it_had_not_paused(
    inputs: TrainInputs, tiny_tower: str, tmp_path: Path
) -> None:
    """The pull is toward the pretrained weights, not toward those of the checkpoint."""
    config = config_of(tiny_tower, **RECIPE)
    whole = train.run(config, inputs, str(tmp_path / "whole"))
    train.advance(config, inputs, str(tmp_path / "paused"), epochs=1)
    paused = train.run(config, inputs, str(tmp_path / "paused"))
    assert_same_weights(paused, whole)


def test_a_guard_of_flips_needs_the_prompts_of_its_shards(
    inputs: TrainInputs, tiny_tower: str, tmp_path: Path
) -> None:
    config = config_of(tiny_tower, recipe__flip=0.5, recipe__flip_guard=True, optim__batch_size=4)
    with pytest.raises(UserError, match=r"recipe\.flip_guard reads the prompts: give the targets"):
        train.run(config, inputs, str(tmp_path / "run"))
    others = Draft.open(str(tmp_path / "targets"), "targets", TargetsConfig(), {}).publish()
    with pytest.raises(UserError, match="was made from other targets"):
        train.run(config, replace(inputs, targets=others), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
