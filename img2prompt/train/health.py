"""Ending a run early, and noticing a worker that hangs.

Nothing here knows Ray: `worker.py` and `ray_worker.py` connect signals, files and the log.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from img2prompt.errors import UserError
from img2prompt.storage import exists
from img2prompt.train.batches import WorkerRank, sum_over_workers

logger = logging.getLogger(__name__)

SIGTERM = threading.Event()
"""Set in a worker's process by SIGTERM, once `note_sigterm` was called, and by `end_and_wait`."""

ENDED = threading.Event()
"""Set in a worker's process when its loop has ended and everything is written."""


class PreemptedError(RuntimeError):
    """A worker is being replaced: the run was saved, and new workers can resume."""


class StopRequestedError(UserError):
    """The whole run was asked to stop; it was saved."""


class NonFiniteLossError(UserError):
    """The loss is not finite, and no more batches may be skipped."""


def note_sigterm() -> None:
    """Set `SIGTERM` at the first signal, in place of ending the process. For the main thread."""

    def note(*_: Any) -> None:
        if SIGTERM.is_set():
            os._exit(1)  # no loop is running that could have saved after the first one
        SIGTERM.set()

    signal.signal(signal.SIGTERM, note)


def end_and_wait(seconds: float) -> None:
    """Make the loop of this worker's process save and end, and wait until it has."""
    SIGTERM.set()
    ENDED.wait(seconds)


@dataclass(frozen=True)
class Vote:
    """Decisions that workers take together in each step: true when any worker votes for it."""

    nonfinite: bool = False
    """The loss of some rows is not finite."""
    preempted: bool = False
    """A worker received SIGTERM, or is about to be replaced."""
    stop_requested: bool = False
    """The whole run was asked to stop."""
    save_due: bool = False
    """A checkpoint is due: `engine.save_seconds` have passed, or a machine will be taken away."""

    @property
    def ends(self) -> bool:
        return self.preempted or self.stop_requested

    def of_all(self, worker: WorkerRank) -> "Vote":
        """Return the vote of all workers together, by one small all-reduce."""
        own = [self.nonfinite, self.preempted, self.stop_requested, self.save_due]
        counts = sum_over_workers(torch.tensor(own, dtype=torch.float64), worker)
        return Vote(*(bool(count) for count in counts.tolist()))


class FileWatch:
    """Sets `seen` when a file exists; a thread checks every `seconds`."""

    def __init__(self, uri: str, seconds: float = 2.0) -> None:
        self.seen = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._run, args=(uri, seconds), daemon=True).start()

    def _run(self, uri: str, seconds: float) -> None:
        while not self.seen.is_set() and not self._closed.wait(seconds):
            with contextlib.suppress(OSError):
                if exists(uri):
                    self.seen.set()

    def close(self) -> None:
        self._closed.set()


@dataclass
class Beat:
    """The last known activity of a worker."""

    rank: int
    count: int
    """Beats so far: a worker that others wait for has fewer than they."""
    doing: str
    published: float
    """When its process last published this, in seconds since 1970."""
    host: str
    pid: int


class HangWatchdog:
    """Ends this process when its loop has not moved for `timeout` seconds, and names who hangs.

    A collective waits forever for a worker that hangs, so it is the waiting workers that notice.
    Beats are published in the process group's key-value store. Ray Train replaces all workers when
    one ends.
    """

    def __init__(
        self, worker: WorkerRank, timeout: float, end: Callable[[str], None] | None = None
    ) -> None:
        """`end` is called with the reason; by default it logs it and ends the process."""
        self._worker = worker
        self._timeout = timeout
        self._end = end or _end
        self._store: Any = None
        if worker.workers > 1:
            store: Any = dist.distributed_c10d._get_default_store()
            self._store = store.clone()  # a second connection: the loop may block the first
            self._store.set_timeout(timedelta(seconds=min(timeout, 30)))
        self._own = Beat(worker.rank, 0, "starting", 0.0, socket.gethostname(), os.getpid())
        self._moved = time.monotonic()
        self._closed = threading.Event()
        self._period = min(5.0, timeout / 8)
        threading.Thread(target=self._run, daemon=True).start()

    def beat(self, doing: str) -> None:
        """Note that the loop has moved, and what it does next."""
        self._own.count += 1
        self._own.doing = doing
        self._moved = time.monotonic()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._period):
            self._own.published = time.time()
            if self._store is not None:
                with contextlib.suppress(RuntimeError):
                    self._store.set(f"beat/{self._worker.rank}", json.dumps(vars(self._own)))
            if time.monotonic() - self._moved > self._timeout and not self._closed.is_set():
                self._end(self.diagnose())
                return

    def diagnose(self) -> str:
        """Return which workers hang, and in what.

        Processes on this machine that do not answer are killed: a stopped one ignores SIGTERM.
        """
        lines = []
        for beat in self._behind(self._beats()):
            lines.append(f"worker {beat.rank} (process {beat.pid} on {beat.host}): {beat.doing}")
            frozen = time.time() - beat.published > 4 * self._period
            if frozen and beat.host == self._own.host and beat.pid not in (0, os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(beat.pid, signal.SIGKILL)
        return f"nothing has moved for {self._timeout:g} s (engine.hang_timeout); " + "; ".join(
            lines
        )

    def _beats(self) -> list[Beat]:
        if self._store is None:
            return [self._own]
        pool = ThreadPoolExecutor(1)
        try:
            return pool.submit(self._read).result(timeout=3 * self._period)
        except (TimeoutError, RuntimeError):  # rank 0 holds the store
            return [Beat(0, 0, "its process does not answer", 0.0, "its machine", 0), self._own]
        finally:
            pool.shutdown(wait=False)

    def _read(self) -> list[Beat]:
        keys = [f"beat/{rank}" for rank in range(self._worker.workers)]
        return [Beat(**json.loads(self._store.get(key))) for key in keys]

    def _behind(self, beats: list[Beat]) -> list[Beat]:
        frozen = [beat for beat in beats if time.time() - beat.published > 4 * self._period]
        least = min(beat.count for beat in beats)
        return frozen or [beat for beat in beats if beat.count == least]


def _end(reason: str) -> None:
    logger.critical("%s", reason)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(1)
