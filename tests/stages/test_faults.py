"""What can go wrong in the middle of a run. A start of Ray Train costs seconds: runs are shared.

Workers of a small run are through in a second, so these make more epochs than they need, and save
often.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.train import UserCallback
from test_train import REPO, another_tower, curve_of, history_of, train_workers
from tiny import assert_close, config_of

from img2prompt.artifact import Artifact, Draft
from img2prompt.config import PlanConfig, TrainConfig
from img2prompt.errors import UserError
from img2prompt.model.predictor import read_learned_state
from img2prompt.stages import train
from img2prompt.stages.checkpoint import Position
from img2prompt.stages.train import Inputs
from img2prompt.storage import exists

EPOCHS = 12

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DRIVER = """
import sys
from img2prompt import runtime
from img2prompt.artifact import Artifact
from img2prompt.config import TrainConfig
from img2prompt.stages import train

config, shards, out = sys.argv[1:]
with runtime.connect():
    train.run(TrainConfig.from_json(config), train.Inputs(Artifact.load(shards, "shards")), out)
"""


def config(tower: str, **changes: Any) -> TrainConfig:
    base = {
        "name": "run",
        "engine__kind": "deepspeed",
        "engine__workers": 2,
        "engine__save_every": 4,
        "engine__hang_timeout": 10.0,
        "optim__epochs": EPOCHS,
        "optim__batch_size": 32,
        "optim__lr": 3e-4,
        "optim__head_lr": 5e-4,
    }
    return config_of(tower, **{**base, **changes})


@pytest.fixture(scope="module")
def inputs(prepared) -> Inputs:
    return Inputs(prepared.shards)


@pytest.fixture(scope="module")
def undisturbed(
    inputs: Inputs, tiny_tower: str, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return train.run(config(tiny_tower), inputs, str(out))


def assert_same(found: Artifact, expected: Artifact, atol: float) -> None:
    assert [row["epoch"] for row in history_of(found)] == list(range(1, EPOCHS + 1))
    for ours, theirs in zip(curve_of(found), curve_of(expected), strict=True):
        assert ours == pytest.approx(theirs, abs=atol)
    assert_close(read_learned_state(found), read_learned_state(expected), atol=atol)


def wait_until(what: Callable[[], Any], seconds: float = 100) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def names_of(out: str) -> list[str]:
    return train.checkpoints(out).names()


def strike(out: str, signals: list[tuple[int, bool]], seen: list[str]) -> None:
    """Send each signal to one worker or to all, whenever there is a checkpoint more."""
    for number, to_all in signals:
        before = names_of(out)[-1:]
        wait_until(lambda before=before: names_of(out)[-1:] > before and len(train_workers()) == 2)
        seen.append(names_of(out)[-1])
        workers = train_workers()
        for process in workers if to_all else workers[-1:]:
            process.send_signal(number)
        pids = {process.pid for process in workers}
        wait_until(lambda pids=pids: not pids & {process.pid for process in train_workers()})


def test_workers_that_die_or_hang_or_are_taken_away_lose_nothing(
    inputs: Inputs, tiny_tower: str, undisturbed: Artifact, tmp_path: Path
) -> None:
    out, seen = str(tmp_path / "run"), []
    kill = [(signal.SIGKILL, False), (signal.SIGKILL, True)]
    signals = [*kill, (signal.SIGTERM, False), (signal.SIGSTOP, False)]
    striker = threading.Thread(target=strike, args=(out, signals, seen))
    striker.start()
    made = train.run(config(tiny_tower), inputs, out)
    striker.join()
    assert len(seen) == len(set(seen)) == len(signals)
    assert seen[-1] < Position(epoch=EPOCHS).name
    assert_same(made, undisturbed, atol=1e-5)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_stopped_driver_saves_and_goes_on_past_damage_with_fewer_workers(
    inputs: Inputs, tiny_tower: str, undisturbed: Artifact, tmp_path: Path
) -> None:
    out, begun = str(tmp_path / "run"), config(tiny_tower, engine__keep=3)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, begun.to_json(), inputs.shards.uri, out],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        cwd=REPO,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: names_of(out) or driver.poll() is not None)
    driver.send_signal(signal.SIGTERM)
    _, told = driver.communicate(timeout=100)
    assert "run was asked to stop and is saved before epoch" in told
    assert driver.returncode == 1
    names = names_of(out)
    assert len(names) >= 3
    assert names[-1] < Position(epoch=EPOCHS).name
    refuse_others(inputs, begun, out)
    folder = Path(train.checkpoints(out).uri)
    flip(folder / names[-1] / "optimizer.safetensors")
    weights = folder / names[-2] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    newest = train.checkpoints(out).newest()
    assert newest is not None
    assert newest.position.name == names[-3]
    made = train.run(begun.replace({"engine.workers": 1, "engine.save_every": 0}), inputs, out)
    assert_same(made, undisturbed, atol=1e-4)
    assert not exists(train.storage(out))
    steps = [json.loads(line)["step"] for line in (Path(out) / "metrics.jsonl").open()]
    assert steps == sorted(steps)
    assert steps[-1] == EPOCHS * (inputs.shards.counts["train"] // 32)


def refuse_others(inputs: Inputs, begun: TrainConfig, out: str) -> None:
    """Changed settings, data and base checkpoint, each told."""
    with pytest.raises(UserError, match=r"config\.optim\.lr: 0\.0003 there, 0\.001 asked for"):
        train.run(begun.replace({"optim.lr": 1e-3}), inputs, out)
    other = Artifact.load(inputs.shards.uri, "shards")
    other.__dict__["fingerprint"] = "another"
    with pytest.raises(UserError, match=r"inputs\.shards: '\w+' there, 'another' asked for"):
        train.run(begun, Inputs(other), out)
    fresh = begun.replace({"tower.weights": another_tower(begun.tower.weights, Path(out).parent)})
    with pytest.raises(UserError, match=r"inputs\.tower: '\w+' there, '\w+' asked for"):
        train.run(fresh, inputs, out)


def counts_errors(folder: Path) -> UserCallback:
    """Notes each error that Ray Train sees, in a file: it lives in another process."""

    class Counts(UserCallback):  # in here, so that it is pickled as a whole
        def after_exception(self, run_context: Any, worker_exceptions: dict) -> None:
            (folder / f"error-{time.monotonic_ns()}").touch()

    return Counts()


def test_a_loss_that_is_no_number_ends_the_run_at_once(
    embedded: Artifact, inputs: Inputs, tiny_tower: str, tmp_path: Path
) -> None:
    plan = PlanConfig()
    poisoned, bad = poison(embedded, tmp_path)
    one = {"engine__kind": "plain", "engine__workers": 1, "engine__save_every": 1}
    probe = config_of(tiny_tower, plan, optim__batch_size=32, **one)
    own, out = Inputs(inputs.shards, poisoned), str(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        train.run(probe, own, out, [counts_errors(tmp_path)])
    told = str(caught.value)
    assert "the loss is no finite number at epoch 1, step" in told
    assert bad in told
    last = train.checkpoints(out).last()
    assert told.endswith(f"The last good checkpoint: {last}")
    assert len(list(tmp_path.glob("error-*"))) == 1
    made = train.run(probe.replace({"engine.skip_nonfinite": 3}), own, out)
    assert made.counts["skipped_batches"] >= 1
    assert [row["epoch"] for row in history_of(made)] == [1, 2, 3]


def poison(embedded: Artifact, folder: Path) -> tuple[Artifact, str]:
    """Features with one number that is none, and the row's id."""
    draft = Draft(str(folder / "features"), "features", embedded.config, embedded.inputs)
    first, bad = embedded.names("train/")[0], ""
    for name in embedded.names("train/") + embedded.names("val/") + embedded.names("test/"):
        table = embedded.read_table(name)
        if name == first:
            bad, numbers = table["id"][5].as_py(), table["feature"].to_pylist()
            numbers[5][3] = float("nan")
            column = pa.array(numbers, table["feature"].type)
            table = table.set_column(table.column_names.index("feature"), "feature", column)
        draft.write_table(name, table)
    return draft.publish(**embedded.counts), bad
