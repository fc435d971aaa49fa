import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo import join
from tiny import ALONE

from img2prompt.storage import write_bytes
from img2prompt.train import health
from img2prompt.train.batches import WorkerRank, gather_ids
from img2prompt.train.health import FileWatch, HangWatchdog, Vote

REPO = Path(__file__).parents[2]


def test_the_vote_of_one_worker_is_its_own() -> None:
    assert Vote(save_due=True).of_all(ALONE) == Vote(save_due=True)
    assert not Vote(save_due=True, nonfinite=True).ends
    assert Vote(preempted=True).ends
    assert Vote(stop_requested=True).ends


def test_a_file_is_noticed(tmp_path: Path) -> None:
    watch = FileWatch(f"file://{tmp_path}/stop/asked", seconds=0.05)
    assert not watch.seen.wait(0.3)
    write_bytes(f"{tmp_path}/stop/asked", b"")
    assert watch.seen.wait(10)


def test_sigterm_is_noted_once() -> None:
    """In its own process: signal handlers belong to a whole process."""
    code = """
import os, signal
from img2prompt.train.health import SIGTERM, note_sigterm
note_sigterm()
assert not SIGTERM.is_set()
os.kill(os.getpid(), signal.SIGTERM)
assert SIGTERM.wait(10)
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, timeout=60).returncode == 1


def test_a_moving_loop_is_left_alone_and_a_hanging_one_is_named() -> None:
    reasons: list[str] = []
    watch = HangWatchdog(ALONE, timeout=1.0, end=reasons.append)
    for step in range(8):
        watch.beat(f"computing step {step}")
        time.sleep(0.25)
    assert reasons == []
    watch.beat("reading the rows of step 9")
    time.sleep(2)
    (reason,) = reasons
    assert f"worker 0 (process {os.getpid()} on" in reason
    assert "reading the rows of step 9" in reason
    assert "1 s (engine.hang_timeout)" in reason


def test_a_closed_watchdog_reports_nothing() -> None:
    reasons: list[str] = []
    watch = HangWatchdog(ALONE, timeout=0.5, end=reasons.append)
    watch.close()
    time.sleep(1)
    assert reasons == []


def member(rank: int, folder: str, frozen: bool) -> None:
    """Three workers vote; then worker 1 hangs, in its data or as a stopped process."""
    join(rank, 3, f"{folder}/meet")
    worker = WorkerRank(rank, 3)
    assert Vote(save_due=rank == 2, preempted=rank == 0).of_all(worker) == Vote(
        save_due=True, preempted=True
    )
    assert gather_ids(["a", "b"] if rank == 1 else [], worker) == ["a", "b"]
    end = Path(folder) / f"reason-{rank}"
    watch = HangWatchdog(
        worker, timeout=4.0, end=lambda reason: (end.write_text(reason), os._exit(0))
    )
    watch.beat("reading the rows of step 1")
    if rank == 1:
        time.sleep(1)  # its beat is known
        if frozen:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)
    watch.beat("computing step 1")
    dist.barrier()


@pytest.mark.parametrize("frozen", [False, True])
def test_the_worker_that_hangs_is_named_by_those_that_wait(tmp_path: Path, frozen: bool) -> None:
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=member, args=(rank, str(tmp_path), frozen)) for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode is not None
    for rank in (0, 2):
        reason = (tmp_path / f"reason-{rank}").read_text()
        assert f"worker 1 (process {processes[1].pid} on" in reason
        assert "reading the rows of step 1" in reason
        assert "worker 0" not in reason
        assert "worker 2" not in reason
    if frozen:
        assert processes[1].exitcode == -signal.SIGKILL


def test_a_hang_ends_the_process() -> None:
    code = """
import time
from img2prompt.train.batches import WorkerRank
from img2prompt.train.health import HangWatchdog
HangWatchdog(WorkerRank(), 0.5).beat("reading the rows of step 3")
time.sleep(30)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "reading the rows of step 3" in done.stderr
    assert health.SIGTERM.is_set() is False
