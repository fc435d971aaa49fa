"""What ends a run early or tells that a worker hangs.

Nothing here knows Ray: `ray_worker.py` connects signals, files and the log.
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
from img2prompt.train.batches import WorkerRank, sum_of_all

logger = logging.getLogger(__name__)

SIGTERM = threading.Event()
"""Set in a worker's process by SIGTERM, once `listen` was called there, and by `end_and_wait`."""

ENDED = threading.Event()
"""Set in a worker's process when its loop is over and all is written."""


class StoppedError(RuntimeError):
    """A worker is to be replaced: the run was saved, and another worker can go on."""


class AskedToStop(UserError):
    """Somebody asked the whole run to stop; it was saved."""


class NotFiniteError(UserError):
    """The loss is no number, and may not be skipped."""


def listen() -> None:
    """Note the first SIGTERM in `SIGTERM` in place of dying by it. Call it in the main thread."""

    def note(*_: Any) -> None:
        if SIGTERM.is_set():
            os._exit(1)  # nobody has looked: there is no loop that could save
        SIGTERM.set()

    signal.signal(signal.SIGTERM, note)


def end_and_wait(seconds: float) -> None:
    """In a worker's process: have the loop save and end, and wait for that."""
    SIGTERM.set()
    ENDED.wait(seconds)


@dataclass(frozen=True)
class Vote:
    """What workers must do together in a step: each is true when any worker says so."""

    bad: bool = False
    """The loss of some rows is no number."""
    taken: bool = False
    """A worker has got SIGTERM, or will be replaced."""
    asked: bool = False
    """The run is asked to stop."""
    late: bool = False
    """A checkpoint is due: `engine.save_seconds` are over, or a machine will be taken away."""

    @property
    def ends(self) -> bool:
        return self.taken or self.asked

    def of_all(self, place: WorkerRank) -> "Vote":
        """The same on every worker; one small all-reduce."""
        own = [self.bad, self.taken, self.asked, self.late]
        found = sum_of_all(torch.tensor(own, dtype=torch.float64), place)
        return Vote(*(bool(count) for count in found.tolist()))


class FileWatch:
    """Whether a file has appeared, looked up every `seconds` in a thread."""

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
    """What a worker was last known to do."""

    rank: int
    count: int
    """Beats so far: of workers that wait for each other, those behind have fewer."""
    doing: str
    told: float
    """When its process last said so, in seconds since 1970."""
    host: str
    pid: int


class HangWatchdog:
    """Ends this process when its loop has not moved for `timeout` seconds, and names who hangs.

    A collective waits without end for a worker that hangs, so the waiting worker finds out. Beats
    go through the process group's own key-value store. Ray Train replaces all workers when one
    ends.
    """

    def __init__(
        self, place: WorkerRank, timeout: float, end: Callable[[str], None] | None = None
    ) -> None:
        self._place = place
        self._timeout = timeout
        self._end = end or _end
        self._store: Any = None
        if place.workers > 1:
            store: Any = dist.distributed_c10d._get_default_store()
            self._store = store.clone()  # a connection of its own: the loop may wait in the other
            self._store.set_timeout(timedelta(seconds=min(timeout, 30)))
        self._own = Beat(place.rank, 0, "starting", 0.0, socket.gethostname(), os.getpid())
        self._moved = time.monotonic()
        self._closed = threading.Event()
        self._period = min(5.0, timeout / 8)
        threading.Thread(target=self._run, daemon=True).start()

    def beat(self, doing: str) -> None:
        """The loop moves."""
        self._own.count += 1
        self._own.doing = doing
        self._moved = time.monotonic()

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._period):
            self._own.told = time.time()
            if self._store is not None:
                with contextlib.suppress(RuntimeError):
                    self._store.set(f"beat/{self._place.rank}", json.dumps(vars(self._own)))
            if time.monotonic() - self._moved > self._timeout and not self._closed.is_set():
                self._end(self.diagnose())
                return

    def diagnose(self) -> str:
        """Which workers hang, and in what; those on this machine are killed if they do not answer.

        A stopped process takes no polite request.
        """
        lines = []
        for beat in self._behind(self._beats()):
            lines.append(f"worker {beat.rank} (process {beat.pid} on {beat.host}): {beat.doing}")
            frozen = time.time() - beat.told > 4 * self._period
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
        except (TimeoutError, RuntimeError):  # the first worker keeps the store
            return [Beat(0, 0, "its process does not answer", 0.0, "its machine", 0), self._own]
        finally:
            pool.shutdown(wait=False)

    def _read(self) -> list[Beat]:
        keys = [f"beat/{rank}" for rank in range(self._place.workers)]
        return [Beat(**json.loads(self._store.get(key))) for key in keys]

    def _behind(self, beats: list[Beat]) -> list[Beat]:
        frozen = [beat for beat in beats if time.time() - beat.told > 4 * self._period]
        least = min(beat.count for beat in beats)
        return frozen or [beat for beat in beats if beat.count == least]


def _end(reason: str) -> None:
    logger.critical("%s", reason)
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(1)
