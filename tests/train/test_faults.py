"""Failures in the middle of a run. A start of Ray Train costs seconds: runs are shared.

Workers of a small run finish within a second, so these runs have more epochs than they need and
save often.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from nodes import clean_environment, kill, local_nodes
from ray.train import UserCallback
from test_train_run import REPO, another_tower, curve_of, history_of, train_workers
from tiny import assert_close, config_of

from img2prompt.artifact import Artifact
from img2prompt.config.train import PlanConfig, TrainConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import read_learned_state
from img2prompt.storage import exists, read_bytes
from img2prompt.train import job as train_job
from img2prompt.train import run as train
from img2prompt.train.checkpoint import Position
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import RunFolder, Stage

EPOCHS = 10

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DRIVER = """
import sys, time
from pathlib import Path
from img2prompt import cli
from img2prompt.distributed import cluster
from img2prompt.distributed.internals import TrainCallback
from img2prompt.artifact import Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs

config, shards, out, notes = sys.argv[1:]


def slow_down():  # so that there is time for the failures
    from img2prompt.train.loop import Loop

    step = Loop._step

    def slow_step(*arguments):
        time.sleep(0 if Path(notes, "fast").exists() else 0.4)
        return step(*arguments)

    Loop._step = slow_step


class Slow(TrainCallback):
    def after_worker_group_start(self, worker_group):
        worker_group.execute(slow_down)
        with open(Path(notes, "sizes"), "a") as file:
            file.write(f"{len(worker_group)}\\n")



def job():
    with cluster.connect():
        inputs = TrainInputs(Artifact.load(shards, "shards"))
        callbacks = [Slow()] if notes else []
        train.run(TrainConfig.from_json(config), inputs, out, callbacks)


cli.main(job)
"""


def config(tower: str, **changes: Any) -> TrainConfig:
    base = {
        "name": "run",
        "engine__kind": "deepspeed",
        "engine__workers": 2,
        "engine__save_every": 4,
        "engine__hang_timeout": 20.0,
        "optim__epochs": EPOCHS,
        "optim__batch_size": 32,
        "optim__lr": 3e-4,
        "optim__head_lr": 5e-4,
    }
    return config_of(tower, **{**base, **changes})


@pytest.fixture(scope="module")
def inputs(prepared) -> TrainInputs:
    return TrainInputs(prepared.shards)


@pytest.fixture(scope="module")
def undisturbed(
    inputs: TrainInputs, tiny_tower: str, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return train.run(config(tiny_tower), inputs, str(out))


def assert_same(found: Artifact, expected: Artifact, atol: float) -> None:
    assert [row["epoch"] for row in history_of(found)] == list(range(1, EPOCHS + 1))
    for ours, theirs in zip(curve_of(found), curve_of(expected), strict=True):
        assert ours == pytest.approx(theirs, abs=atol)
    assert_close(read_learned_state(found), read_learned_state(expected), atol=atol)


def wait_until(what: Callable[[], Any], seconds: float = 150) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def names_of(out: str) -> list[str]:
    return train_job.checkpoints(out).names()


def strike(out: str, signals: list[tuple[int, bool]], seen: list[str]) -> None:
    """Send each signal to one worker or to all after each new checkpoint."""
    for number, to_all in signals:
        before = names_of(out)[-1:]
        wait_until(lambda before=before: names_of(out)[-1:] > before and len(train_workers()) == 2)
        seen.append(names_of(out)[-1])
        workers = train_workers()
        for process in workers if to_all else workers[-1:]:
            process.send_signal(number)
        pids = {process.pid for process in workers}
        wait_until(lambda pids=pids: not pids & {process.pid for process in train_workers()})


def test_workers_that_die_or_hang_or_are_preempted_lose_nothing(
    inputs: TrainInputs, tiny_tower: str, undisturbed: Artifact, tmp_path: Path
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


def start_driver(
    config: TrainConfig, inputs: TrainInputs, out: str, notes: str = "", **environment: str
) -> subprocess.Popen:
    arguments = [config.to_json(), inputs.shards.uri, out, notes]
    kept = {n: v for n, v in os.environ.items() if not n.startswith("RAY_") or not environment}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        env={**kept, "PYTHONPATH": str(REPO), **environment},
        cwd=REPO,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_stopped_and_a_killed_driver_resume_past_damage_with_fewer_workers(
    inputs: TrainInputs,
    tiny_tower: str,
    undisturbed: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, begun = str(tmp_path / "run"), config(tiny_tower, engine__keep=3)
    driver = start_driver(begun, inputs, out)
    wait_until(lambda: names_of(out) or driver.poll() is not None)
    driver.send_signal(signal.SIGTERM)
    _, message = driver.communicate(timeout=150)
    assert message.splitlines()[-1].startswith("stopped by SIGTERM: run is saved before epoch ")
    assert "Traceback" not in message
    assert driver.returncode == 143
    names = names_of(out)
    driver = start_driver(begun, inputs, out)
    wait_until(lambda: names_of(out)[-1] > names[-1] and len(names_of(out)) >= 3)
    driver.kill()
    driver.communicate()
    wait_until(lambda: not train_workers())  # they may still be saving
    names = names_of(out)
    assert names[-1] < Position(epoch=EPOCHS).name
    with pytest.raises(UserError, match="was not finished: run its train job again"):
        Artifact.load(out, Stage.TRAIN)
    refuse_others(inputs, begun, out)
    folder = Path(train_job.checkpoints(out).uri)
    flip(folder / names[-1] / "optimizer.safetensors")
    weights = folder / names[-2] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    newest = train_job.checkpoints(out).newest()
    assert newest is not None
    assert newest.position.name == names[-3]
    last = begun.replace({"engine.workers": 1, "engine.save_every": 0})

    def killed(*parts: Any) -> Artifact:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # and once more, between the last epoch and the end
        patch.setattr(train, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            train.run(last, inputs, out)
    made = train.run(last, inputs, out)
    assert_same(made, undisturbed, atol=1e-4)
    assert history_of(made)[: len(newest.position.history)] == newest.position.history
    assert not exists(RunFolder(out).work)
    steps = [json.loads(line)["step"] for line in (Path(out) / "metrics.jsonl").open()]
    assert steps == sorted(steps)
    assert steps[-1] == EPOCHS * (inputs.shards.counts["train"] // 32)


@contextmanager
def another_node(environment: dict[str, str]) -> Iterator[None]:
    """One more node of the cluster that this environment names."""
    options = f"start --block --address {environment['RAY_ADDRESS']} --num-cpus 1 "
    options += "--node-manager-port 0 --object-manager-port 0 --dashboard-agent-listen-port 0 "
    options += "--include-log-monitor false --object-store-memory 150000000"
    node = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *options.split()],
        env={**clean_environment(), **environment, "PYTHONPATH": str(REPO)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def drain(environment: dict[str, str], node: str) -> None:
    """Announce, as an autoscaler does, that a machine will be taken away in ten minutes."""
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--node-id", node]
    command += ["--address", environment["RAY_ADDRESS"], "--deadline-remaining-seconds", "600"]
    own = {**clean_environment(), **environment}
    subprocess.run([*command, *reason], env=own, check=True, timeout=60)


def nodes_of(environment: dict[str, str]) -> list[str]:
    """Living nodes with a CPU, the oldest first."""
    code = "import ray; ray.init(log_to_driver=False, logging_level='ERROR'); print(*(n['NodeID'] "
    code += "for n in ray.nodes() if n['Alive'] and n['Resources'].get('CPU')))"
    own = {**clean_environment(), **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=own, check=True, capture_output=True, text=True
    ).stdout.split()


def is_inside(name: str) -> bool:
    """Return whether a checkpoint is inside an epoch."""
    return not name.endswith("-000000000")


@pytest.mark.timeout(400)
def test_a_run_continues_while_nodes_die_join_and_are_drained(
    inputs: TrainInputs, tiny_tower: str, undisturbed: Artifact, tmp_path: Path
) -> None:
    """Checkpoints are due after epochs only: one inside an epoch was saved before a resize."""
    changes = {"min_workers": 1, "resize_seconds": 2.0, "save_every": 0, "keep": 99}
    elastic = config(tiny_tower, **{f"engine__{name}": value for name, value in changes.items()})
    out, sizes = str(tmp_path / "run"), tmp_path / "sizes"
    with local_nodes("--nodes", "2", "--cpus", "1") as exports, ExitStack() as stack:
        seconds = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
        seconds["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "1"
        driver = start_driver(elastic, inputs, out, str(tmp_path), **exports, **seconds)
        stack.callback(driver.kill)

        def until(what: Callable[[], Any]) -> None:
            wait_until(lambda: what() or driver.poll() is not None)
            assert driver.poll() is None, driver.communicate()[1][-3000:]

        until(lambda: names_of(out))
        kill(exports["RAY_ADDRESS"], "raylet/raylet")
        until(lambda: sizes.read_text().split() == ["2", "1"])
        assert not any(map(is_inside, names_of(out)))
        before = set(nodes_of(exports))
        stack.enter_context(another_node(exports))
        until(lambda: sizes.read_text().split() == ["2", "1", "2"])
        assert sum(map(is_inside, names_of(out))) == 1
        (fresh,) = set(nodes_of(exports)) - before
        drain(exports, fresh)
        until(lambda: sum(map(is_inside, names_of(out))) == 2)
        (tmp_path / "fast").touch()
        _, message = driver.communicate(timeout=150)
        assert driver.returncode == 0, message[-3000:]
    assert_same(Artifact.load(out, Stage.TRAIN), undisturbed, atol=1e-4)


def refuse_others(inputs: TrainInputs, begun: TrainConfig, out: str) -> None:
    """Changed settings, data and base checkpoint are refused with their names."""
    with pytest.raises(UserError, match=r"config\.optim\.lr: saved 0\.0003, requested 0\.001"):
        train.run(begun.replace({"optim.lr": 1e-3}), inputs, out)
    other = Artifact.load(inputs.shards.uri, "shards")
    other.__dict__["fingerprint"] = "another"
    with pytest.raises(UserError, match=r"inputs\.shards: saved '\w+', requested 'another'"):
        train.run(begun, TrainInputs(other), out)
    fresh = begun.replace({"tower.weights": another_tower(begun.tower.weights, Path(out).parent)})
    with pytest.raises(UserError, match=r"inputs\.tower: saved '\w+', requested '\w+'"):
        train.run(fresh, inputs, out)


def counts_errors(folder: Path) -> UserCallback:
    """Notes each error that Ray Train sees, in a file: it lives in another process."""

    class Counts(UserCallback):  # in here, so that it is pickled as a whole
        def after_exception(self, run_context: Any, worker_exceptions: dict) -> None:
            (folder / f"error-{time.monotonic_ns()}").touch()

    return Counts()


def test_a_non_finite_loss_ends_the_run_at_once(
    embedded: Artifact, inputs: TrainInputs, tiny_tower: str, tmp_path: Path
) -> None:
    plan = PlanConfig()
    poisoned, bad = poison(embedded, tmp_path)
    one = {"engine__kind": "plain", "engine__workers": 1, "engine__save_every": 1}
    probe = config_of(tiny_tower, plan, optim__batch_size=32, **one)
    own, out = TrainInputs(inputs.shards, poisoned), str(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        train.run(probe, own, out, [counts_errors(tmp_path)])
    message = str(caught.value)
    assert "non-finite loss at epoch 1, step" in message
    assert bad in message
    last = train_job.checkpoints(out).last()
    assert message.endswith(f"The last good checkpoint: {last}")
    assert len(list(tmp_path.glob("error-*"))) == 1
    longer = probe.replace({"engine.skip_nonfinite": 4, "optim.epochs": 4})
    refuse_to_resume_anyway(longer, own, out)
    made = train.run(longer, own, out, resume_anyway=True)
    assert made.counts["skipped_batches"] >= 1
    assert [row["epoch"] for row in history_of(made)] == [1, 2, 3, 4]
    assert made.config["optim"]["epochs"] == 4
    (change,) = [json.loads(read_bytes(made.path(name))) for name in made.names("changes/")]
    assert change["config"] == json.loads(probe.to_json())
    assert change["differences"] == ["config.optim.epochs: saved 3, requested 4"]


def refuse_to_resume_anyway(longer: TrainConfig, inputs: TrainInputs, out: str) -> None:
    """Without `resume_anyway` any change; with it another model, batch size, recipe or data."""
    with pytest.raises(UserError, match=r"config\.optim\.epochs: saved 3, requested 4"):
        train.run(longer, inputs, out)
    with pytest.raises(UserError, match=r"does not fit this config:(\n.*)*missing head\.0\.weight"):
        train.run(longer.replace({"head.width": 8}), inputs, out, resume_anyway=True)
    with pytest.raises(
        UserError, match=r"recipe is .*0\.9.*; allowed for the run in .*ema_decay=0"
    ):
        train.run(longer.replace({"recipe.ema_decay": 0.9}), inputs, out, resume_anyway=True)
    with pytest.raises(UserError, match=r"optim\.batch_size is 16; allowed for the run in .*: 32"):
        train.run(longer.replace({"optim.batch_size": 16}), inputs, out, resume_anyway=True)
    other = Artifact.load(inputs.shards.uri, "shards")
    assert inputs.features is not None
    features = dataclasses.replace(inputs.features, counts={})
    features.__dict__["fingerprint"] = "another"
    with pytest.raises(UserError, match=r"inputs\.features: saved '\w+', requested 'another'"):
        train.run(longer, TrainInputs(other, features), out, resume_anyway=True)
    assert TrainConfig.from_json(read_bytes(f"{out}/config.json").decode()).optim.epochs == 3


def poison(embedded: Artifact, folder: Path) -> tuple[Artifact, str]:
    """Return features with one NaN, and the id of its row."""
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
