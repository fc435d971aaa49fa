"""Two jobs in one folder: real processes of this machine; leases stand in for other machines."""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from img2prompt import lease as lease_module
from img2prompt.artifact import Artifact
from img2prompt.config.prepare import TargetsConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.holder import Holder, read_holder, this_process
from img2prompt.lease import KEEPER, LEASE, WORKER, Lease, LeaseKeeper
from img2prompt.storage import create_bytes, delete_file, exists, join, write_bytes

ROOT = Path(__file__).parents[1]

JOB = """
import sys, time
from img2prompt.config.prepare import TargetsConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError

try:
    draft = Draft.open(sys.argv[1], "made", TargetsConfig(), {})
except UserError as error:
    print(f"refused: {error}")
    sys.exit(2)
print(f"holds it, with {sorted(draft.receipts())}", flush=True)
if sys.argv[2] == "fail":
    raise ValueError
draft.write_bytes(sys.argv[2], b"x")
print("wrote", flush=True)
sys.stdin.readline()
draft.publish()
"""
"""Opens a folder, writes a file into it, waits for a line, and publishes."""


def start(folder: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-c", JOB, str(folder), name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


@contextlib.contextmanager
def writing(folder: Path, name: str) -> Iterator[subprocess.Popen]:
    """A job that has written a file and waits."""
    job = start(folder, name)
    assert job.stdout is not None
    try:
        assert job.stdout.readline().startswith("holds it"), job.communicate()
        assert job.stdout.readline() == "wrote\n", job.communicate()
        yield job
    finally:
        job.kill()
        job.communicate()


def opened(uri: str) -> Draft:
    return Draft.open(uri, "made", TargetsConfig(), {})


def elsewhere(**changes: object) -> Holder:
    """A process of another machine that has just renewed its lease, by a clock that is wrong."""
    fields = {"token": "other", "job": "train.py", "host": "node-7", "machine": "boot 2", "pid": 41}
    return replace(this_process(), **{**fields, "renewed": time.time() - 500, **changes})


def write_lease(uri: str, holder: Holder) -> None:
    write_bytes(join(uri, LEASE), json.dumps(asdict(holder)).encode())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "DEAD_S", 0.6)


@pytest.fixture(params=["path", "fsspec+memory://"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on a disk, and on a file system that creates nothing exclusively."""
    if request.param == "path":
        return str(tmp_path / "out")
    return f"fsspec+memory://{tmp_path.name}-{id(request)}/out"


def test_a_second_job_is_refused_with_the_first_and_leaves_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with writing(folder, "first") as first:
        before = (folder / LEASE).read_bytes()
        began = time.monotonic()
        with pytest.raises(UserError) as caught:
            opened(str(folder))
        assert time.monotonic() - began < 5
        message = str(caught.value)
        expected = rf"{folder} is being written by another job: -c, process {first.pid} on \S+, "
        assert re.match(expected + r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\. ", message)
        assert "stop it and run this command again: it takes over at once" in message
        assert (folder / LEASE).read_bytes() == before
        first.communicate("go on\n", timeout=30)
        assert first.returncode == 0
    assert Artifact.load(str(folder), "made").names() == ["first"]
    assert not (folder / LEASE).exists()


def test_the_folder_of_a_killed_job_is_resumed_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with writing(folder, "first") as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (folder / LEASE).exists()
        began = time.monotonic()
        draft = opened(str(folder))
        assert time.monotonic() - began < 5
    assert set(draft.receipts()) == {"first"}
    draft.write_bytes("second", b"x")
    assert draft.publish().names() == ["first", "second"]


def test_a_killed_job_that_nobody_waited_for_has_ended(tmp_path: Path) -> None:
    """As the child of a shell or a container's first process that does not collect it."""
    with writing(tmp_path, "first") as first:
        os.kill(first.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{first.pid}/stat").read_text().split()[2] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert set(opened(str(tmp_path)).receipts()) == {"first"}


def test_of_jobs_that_start_together_one_holds_the_folder(tmp_path: Path) -> None:
    jobs = [start(tmp_path / "out", f"job-{number}") for number in range(4)]
    firsts = [job.stdout.readline() for job in jobs if job.stdout is not None]
    for job in jobs:
        job.kill()
        job.communicate()
    assert sorted(line.split(":")[0].split(",")[0] for line in firsts) == [
        "holds it",
        "refused",
        "refused",
        "refused",
    ]


def test_a_job_that_fails_leaves_no_lease(tmp_path: Path) -> None:
    job = start(tmp_path / "out", "fail")
    _, errors = job.communicate(timeout=30)
    assert "ValueError" in errors
    assert (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "out" / LEASE).exists()


def test_a_process_number_that_was_used_again_is_another_process(tmp_path: Path) -> None:
    write_lease(str(tmp_path), replace(this_process(), token="other", born="17"))
    opened(str(tmp_path)).publish()


def test_a_lease_of_another_machine_that_is_not_renewed_is_taken_over(
    folder: str, quick: None
) -> None:
    write_lease(folder, elsewhere())
    began = time.monotonic()
    draft = opened(folder)
    assert 0.6 <= time.monotonic() - began < 5
    holder = read_holder(join(folder, LEASE))
    assert holder is not None
    assert holder.pid == os.getpid()
    draft.publish()
    assert not exists(join(folder, LEASE))


@pytest.mark.parametrize("change", ["renewed", "taken over"])
def test_a_lease_of_another_machine_that_changes_is_refused(
    folder: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "DEAD_S", 5.0)
    now = elsewhere(renewals=8, token="other" if change == "renewed" else "third")
    write_lease(folder, elsewhere(renewals=7))
    timer = threading.Timer(0.3, write_lease, [folder, now])
    timer.start()
    began = time.monotonic()
    with pytest.raises(UserError, match=r"train\.py, process 41 on node-7, since 20.* UTC"):
        opened(folder)
    assert time.monotonic() - began < 4
    timer.join()
    assert not exists(join(folder, "manifest.json"))


def test_a_lease_that_is_released_while_a_job_waits_is_taken(folder: str) -> None:
    write_lease(folder, elsewhere())
    timer = threading.Timer(0.3, delete_file, [join(folder, LEASE)])
    timer.start()
    opened(folder).publish()
    timer.join()


def test_a_lease_of_another_day_is_taken_over_at_once(folder: str) -> None:
    write_lease(folder, elsewhere(renewed=time.time() - 2 * lease_module.STALE_S))
    began = time.monotonic()
    opened(folder)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"pid": 4}'])
def test_a_damaged_lease_holds_nobody_up(folder: str, text: bytes) -> None:
    write_bytes(join(folder, LEASE), text)
    opened(folder).publish()


def test_a_lease_is_renewed_and_a_lost_one_stops_the_writer(
    folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.05)
    keeper = LeaseKeeper()
    lease = keeper.hold(folder)
    assert lease is not None
    deadline = time.monotonic() + 10
    while read_holder(lease.path).renewals < 3:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    keeper.require(join(folder, "inside"))
    with caplog.at_level(logging.ERROR):
        while not lease.is_lost:  # a renewal in the same moment may write over it
            assert time.monotonic() < deadline
            write_lease(folder, elsewhere())
            time.sleep(0.02)
    assert f"{folder} was taken over by train.py, process 41 on node-7" in caplog.text
    with pytest.raises(UserError, match=r"has another writer, or its lease\.json was deleted"):
        keeper.require(join(folder, "inside"))
    keeper.release(lease)
    holder = read_holder(lease.path)
    assert holder is not None
    assert holder.token == "other", "the winner's lease is left alone"


def test_a_draft_whose_lease_is_lost_writes_nothing(tmp_path: Path) -> None:
    draft = opened(str(tmp_path))
    draft.write_bytes("one", b"x")
    write_lease(str(tmp_path), elsewhere())
    KEEPER.hold(str(tmp_path / "inside")).renew()  # type: ignore[union-attr]
    for write in (lambda: draft.write_bytes("two", b"x"), draft.publish):
        with pytest.raises(UserError, match="has another writer"):
            write()
    assert not (tmp_path / "two").exists()
    KEEPER.end(str(tmp_path))


def test_the_last_reference_to_a_draft_ends_its_lease(folder: str) -> None:
    first, second = opened(folder), opened(folder)
    del first
    assert exists(join(folder, LEASE))
    del second
    assert not exists(join(folder, LEASE))


def test_the_lease_of_a_folder_covers_the_folders_in_it(folder: str) -> None:
    whole, part = opened(folder), opened(join(folder, "part"))
    beside = opened(f"{folder}-beside")
    assert exists(join(folder, LEASE))
    assert not exists(join(folder, "part", LEASE))
    assert exists(join(f"{folder}-beside", LEASE))
    part.publish()
    assert exists(join(folder, LEASE))
    whole.publish()
    beside.publish()
    assert not exists(join(folder, LEASE))


def test_a_folder_has_one_lease_however_it_is_spelled(tmp_path: Path) -> None:
    first, second = opened(str(tmp_path / "out")), opened(f"file://{tmp_path}/out/")
    del first
    assert (tmp_path / "out" / LEASE).exists()
    del second
    assert not (tmp_path / "out" / LEASE).exists()


def test_a_folder_that_starts_over_keeps_its_lease(tmp_path: Path) -> None:
    def renewed(source: str) -> Draft:
        return Draft.open(
            str(tmp_path), "made", TargetsConfig(), {"source": source}, renewable=True
        )

    renewed("one").write_bytes("x", b"x")
    draft = renewed("two")
    assert (tmp_path / LEASE).exists()
    assert draft.receipts() == {}
    draft.publish()


def test_a_folder_that_was_deleted_is_held_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = opened(str(folder))
    (folder / LEASE).unlink()
    second = opened(str(folder))
    assert (folder / LEASE).exists()
    del first
    assert (folder / LEASE).exists()
    second.publish()


def test_finished_folders_are_opened_whoever_reads_them(tmp_path: Path) -> None:
    opened(str(tmp_path)).publish()
    write_lease(str(tmp_path), replace(this_process(), token="other"))
    draft = opened(str(tmp_path))
    assert draft.finished() is not None
    with pytest.raises(UserError, match="is being written by another job"):
        draft.reopen()


def test_processes_of_a_job_are_covered_by_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial of a search resumes at once where another worker had it."""
    write_lease(str(tmp_path), elsewhere())
    monkeypatch.setenv(WORKER, elsewhere().token)
    opened(str(tmp_path)).publish()


def test_a_worker_writes_only_where_no_other_job_has_taken_over(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver, which may be suspended, plays no part."""
    part, run = join(folder, "trials"), join(folder, "trials", "007")
    monkeypatch.setenv(WORKER, KEEPER.token)
    KEEPER.require(run)
    write_lease(part, elsewhere())
    with pytest.raises(UserError, match="007 has another writer"):
        KEEPER.require(run)
    write_lease(folder, replace(elsewhere(), token=KEEPER.token))
    KEEPER.require(run)  # left by a job of this folder alone, before the driver held all of it
    write_lease(folder, elsewhere(token="third"))
    with pytest.raises(UserError, match="has another writer"):
        KEEPER.require(run)


def test_a_lease_holds_no_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/jobs/train.py", "--out", "s3://key:secret@bucket"])
    submitted = {"metadata": {"job_submission_id": "raysubmit_7"}, "runtime_env": {"x": "secret"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    lease = Lease(str(tmp_path), this_process())
    lease.acquire()
    text = (tmp_path / LEASE).read_text()
    assert json.loads(text)["job"] == "train.py (raysubmit_7)"
    assert "secret" not in text
    lease.release()
    assert not (tmp_path / LEASE).exists()


def test_one_of_many_threads_creates_a_file(tmp_path: Path) -> None:
    path, wins = str(tmp_path / "sub" / "file"), []
    threads = [
        threading.Thread(target=lambda n=n: wins.append(create_bytes(path, b"%d" % n)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins.count(True) == 1
    assert len(wins) == 8
