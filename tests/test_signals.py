"""Stop signals of a job, in processes of their own."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from img2prompt.signals import Stopped, StopSignals, handlers_kept, run_until_stopped

JOB = """
import os, sys, threading, time
from img2prompt import cli
from img2prompt.errors import UserError
from img2prompt.signals import run_until_stopped

saved = threading.Event()

def wait():
    print("working", flush=True)
    time.sleep(60)

def save_and_end():
    print("working", flush=True)
    saved.wait(60)
    raise UserError("lora is saved before epoch 2, step 7")

def end_well():
    print("working", flush=True)
    saved.wait(60)

def unwind_with_an_error():
    try:
        wait()
    finally:
        raise KeyError("a consequence of the signal")

def hang():
    print("working", flush=True)
    time.sleep(60)

class Store:
    # Fails as often as the kind says.

    def __init__(self, failures):
        self.failures = failures

    def save(self):
        if self.failures:
            self.failures -= 1
            raise OSError("the store is away")
        saved.set()

kind = sys.argv[1]
if kind.startswith("away"):
    cli.main(lambda: run_until_stopped(end_well, Store(int(kind[-1])).save))
    sys.exit()
if kind in ("wait", "unwind_with_an_error"):
    cli.main(globals()[kind])
else:
    cli.main(lambda: run_until_stopped(globals()[kind], saved.set))
print("a stage after the stopped one")
"""


def stop(kind: str, *signals: signal.Signals) -> tuple[int, str]:
    """Send signals to a job while it works; return its exit code and its messages."""
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "working\n"
    for number in signals:
        os.killpg(job.pid, number)
        time.sleep(0.5)  # signals that wait for delivery together may come in any order
    printed, errors = job.communicate(timeout=30)
    assert not printed, "no further stage begins"
    assert "Traceback" not in errors
    return job.returncode, errors


GENERAL = "finished work is saved; run the same command again to resume\n"


@pytest.mark.parametrize(
    ("kind", "number", "code", "line"),
    [
        ("wait", signal.SIGINT, 130, f"stopped by SIGINT: {GENERAL}"),
        ("wait", signal.SIGTERM, 143, f"stopped by SIGTERM: {GENERAL}"),
        ("unwind_with_an_error", signal.SIGINT, 130, f"stopped by SIGINT: {GENERAL}"),
        ("end_well", signal.SIGINT, 130, f"stopped by SIGINT: {GENERAL}"),
        (
            "save_and_end",
            signal.SIGTERM,
            143,
            "stopped by SIGTERM: lora is saved before epoch 2, step 7\n",
        ),
    ],
)
def test_a_stopped_job_says_what_is_saved(kind: str, number, code: int, line: str) -> None:
    returned, errors = stop(kind, number)
    assert returned == code
    assert errors.endswith(line)


def test_the_second_signal_ends_a_job_that_does_not_end() -> None:
    began = time.monotonic()
    code, errors = stop("hang", signal.SIGINT, signal.SIGINT)
    assert code == 130
    assert errors == "SIGINT: saving before the job stops; a second one stops it now\n"
    assert time.monotonic() - began < 30


FAILED = "SIGTERM: cannot save (OSError: the store is away); "
SAVING = "SIGTERM: saving before the job stops; a second one stops it now\n"


@pytest.mark.parametrize(
    ("kind", "end"),
    [("away 1", f"stopped by SIGTERM: {GENERAL}"), ("away 2", f"{FAILED}stopped without saving\n")],
)
def test_a_signal_that_could_not_save_is_followed_by_one_that_tries_again(
    kind: str, end: str
) -> None:
    code, errors = stop(kind, signal.SIGTERM, signal.SIGTERM)
    assert code == 143
    continues = f"{FAILED}the job continues. Another signal tries again\n"
    assert errors == f"{SAVING}{continues}{SAVING}{end}"


def test_the_signal_of_a_stage_is_known_to_the_job(monkeypatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)

    def job() -> None:
        try:
            run_until_stopped(lambda: signal.raise_signal(signal.SIGTERM), save=lambda: None)
        finally:
            signal.raise_signal(signal.SIGINT)  # the second one, while the first unwinds

    with pytest.raises(Stopped), StopSignals():
        job()
    assert codes == [130]


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def job() -> None:
        with handlers_kept():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped), StopSignals():
        job()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_work_of_other_threads_runs_as_it_is() -> None:
    threads: list[threading.Thread] = []

    def work() -> None:
        threads.append(threading.current_thread())

    thread = threading.Thread(target=lambda: run_until_stopped(work, save=work))
    thread.start()
    thread.join()
    assert threads == [thread]
