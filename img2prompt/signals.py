"""Ctrl-C and SIGTERM: the first ends a job where nothing is lost, the second ends it at once.

`cli.main` wraps a whole job: a signal raises `Stopped`, which unwinds it. A stage that can save
unfinished work wraps that work with a `save` of its own. Either way the files that stages have
finished stay on disk, so that the same command resumes.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TypeVar

from img2prompt.errors import UserError

R = TypeVar("R")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Sent by Ctrl-C, and by `kill`, `ray job stop`, Kubernetes and batch schedulers."""

SHELL_OFFSET = 128
"""Exit codes of processes that a signal ended are this plus its number: 130 and 143."""


class Stopped(KeyboardInterrupt):
    """A signal asked the job to stop."""

    def __init__(self, number: int, saved: str = "") -> None:
        """`saved` says what was saved, where a stage saved unfinished work."""
        self.name = signal.Signals(number).name
        self.exit_code = SHELL_OFFSET + number
        self.saved = saved or "finished work is saved; run the same command again to resume"
        super().__init__(f"{self.name}: {self.saved}")


class StopSignals:
    """Handles stop signals in a `with` block of the main thread; elsewhere it does nothing.

    The first signal calls `save`, which asks the block's work to save and end; without `save` it
    raises Stopped. However the block ends after that, Stopped is raised, so that no further stage
    begins. The second signal ends the process at once; a Ray cluster that it started ends with it.
    When `save` fails, the work continues and the next signal tries again; it ends the process if
    that fails too.
    """

    def __init__(self, save: Callable[[], None] | None = None) -> None:
        self._save = save
        self._received = 0
        self._has_failed = False
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            # A handler that no Python code installed is None, which cannot be set again.
            self._before = {
                number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS
            }
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopSignals):
                outer._received = outer._received or self._received
        if self._received and not isinstance(error, Stopped):
            raise Stopped(self._received, str(error) if isinstance(error, UserError) else "")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            os._exit(SHELL_OFFSET + number)
        self._received = number
        if self._save is None:
            raise Stopped(number)
        name = signal.Signals(number).name
        _print(f"{name}: saving before the job stops; a second one stops it now")
        try:
            self._save()
        except Exception as error:  # of any storage
            self._end_or_retry(number, error)

    def _end_or_retry(self, number: int, error: Exception) -> None:
        """End the process if `save` has failed before, else let the next signal try again."""
        reason = f"cannot save ({type(error).__name__}: {error})"
        name = signal.Signals(number).name
        if self._has_failed:
            _print(f"{name}: {reason}; stopped without saving")
            os._exit(SHELL_OFFSET + number)
        self._has_failed, self._received = True, 0
        _print(f"{name}: {reason}; the job continues. Another signal tries again")


def _print(line: str) -> None:
    """Write a line to stderr, not by logging, whose lock the interrupted code may hold."""
    os.write(2, f"{line}\n".encode())


def run_until_stopped(work: Callable[[], R], save: Callable[[], None]) -> R:
    """Run work that saves and ends after `save` was called, which the first signal does.

    The work runs in a thread of its own: in the main thread, Ray Train would install a handler of
    Ctrl-C that ends a run without saving.

    Raises:
        Stopped: a signal was received, however the work ended.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    with StopSignals(save), ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the stop signals' handlers after the block, in which a library installs its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler not in (None, signal.SIG_DFL):
                signal.signal(number, handler)
