"""SIGKILL a worker, a node's raylet and the driver: the result equals an undisturbed run."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nodes import clean_environment, kill

from img2prompt.artifact import Artifact
from img2prompt.workspace import Stage

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.drill, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PREPARE = (
    *("jobs/prepare.py", "demo", "--sources.0.prompts", "110", "--sources.0.size", "256"),
    *("--shard.size", "64", "--shard.rows-per-shard", "8", "--shard.rows-per-group", "8"),
)
"""Large drawn pictures, so that there is time to kill something."""


@pytest.fixture(scope="module")
def exports(start_nodes) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=":")
        with start_nodes("--nodes", "2", "--cpus", "2") as exported:
            yield exported


@pytest.fixture(scope="module")
def start(exports, tmp_path_factory) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a job on the cluster; its output goes to a file that a failing test shows."""
    environment = {**clean_environment(), **exports, "PYTHONPATH": str(ROOT)}
    log = tmp_path_factory.mktemp("jobs") / "log"
    running: list[subprocess.Popen] = []

    def begin(*arguments: str) -> subprocess.Popen:
        with log.open("ab") as output:
            command = [sys.executable, *arguments]
            job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        running.append(job)
        return job

    yield begin
    for job in running:
        job.kill()
        job.wait()
    print(log.read_text()[-5000:])


def wait_for(condition: Callable[[], object], job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert job.poll() is None, f"the job ended with {job.returncode} before it was disturbed"
        assert time.monotonic() < deadline, "the job did not get that far in time"
        time.sleep(0.02)


def receipts(folder: Path, kind: str) -> Callable[[], bool]:
    """Return a condition: at least two files of a kind are finished."""
    return lambda: len(list((folder / "receipts" / kind).glob("*"))) >= 2


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory) -> Path:
    """Make shards and features in a run without kills."""
    out = tmp_path_factory.mktemp("undisturbed")
    for arguments in (PREPARE, ("jobs/features.py", "--batch-size", "4")):
        assert start(*arguments, "--out", str(out)).wait(timeout=300) == 0
    return out


def test_prepare_survives_worker_driver_and_node(exports, start, undisturbed, tmp_path) -> None:
    job = start(*PREPARE, "--out", str(tmp_path))
    wait_for(receipts(tmp_path / "shards", "train"), job)
    kill(exports["RAY_ADDRESS"], "ray::_write_shard")
    job.kill()
    job.wait()
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "shards" / "train").glob("*.parquet")}
    again = start(*PREPARE, "--out", str(tmp_path))
    wait_for(lambda: len(list((tmp_path / "shards" / "train").glob("*"))) > len(finished), again)
    kill(exports["RAY_ADDRESS"], "raylet/raylet")
    assert again.wait(timeout=300) == 0
    kept = [path for path, changed in finished.items() if path.stat().st_mtime_ns == changed]
    assert len(kept) >= len(finished) - 2  # what had no receipt yet when the driver died
    made = Artifact.load(str(tmp_path / "shards"), Stage.SHARDS)
    assert made.fingerprint == Artifact.load(str(undisturbed / "shards"), Stage.SHARDS).fingerprint


def test_features_survive_the_loss_of_an_actor(exports, start, undisturbed, tmp_path) -> None:
    (tmp_path / "shards").symlink_to(undisturbed / "shards")
    job = start("jobs/features.py", "--batch-size", "4", "--out", str(tmp_path))
    wait_for(receipts(tmp_path / "features", "train"), job)
    kill(exports["RAY_ADDRESS"], "ray::MapWorker")
    assert job.wait(timeout=300) == 0
    found, expected = (
        Artifact.load(str(out / "features"), Stage.FEATURES) for out in (tmp_path, undisturbed)
    )
    assert found.fingerprint == expected.fingerprint
