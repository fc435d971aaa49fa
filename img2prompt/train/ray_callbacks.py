"""What the driver of a run does about errors of its workers, and about SIGTERM."""

import contextlib
import logging
import posixpath
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from ray.exceptions import RayError
from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ResizingState

from img2prompt.errors import UserError
from img2prompt.storage import delete_folder, write_bytes
from img2prompt.train.checkpoint import CheckpointStore
from img2prompt.train.health import end_and_wait, note_sigterm

logger = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds that workers have to save before their number changes; validation comes first."""
RETRIES = 8
"""Times that workers are replaced without a new checkpoint before a run gives up."""


def own_callbacks(store: CheckpointStore) -> list[Any]:
    """Ray Train's callbacks of every run."""
    return [StopOnUserError(), GiveUp(store), SaveFirst()]


class StopOnUserError(UserCallback):
    """Ends a run at the first UserError of a worker: the same would happen to a new worker."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if told := _user_error(worker_exceptions.values()):
            raise told  # Ray Train never retries an error of a callback


class GiveUp(UserCallback):
    """Ends a run whose workers die again and again in one place.

    Ray Train's own limit counts the deaths of a whole run: a long one on machines that are taken
    away would reach any.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._newest = ""
        self._deaths = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        newest = self._store.last()
        self._deaths = 1 if newest != self._newest else self._deaths + 1
        self._newest = newest
        if self._deaths > RETRIES:
            raise UserError(
                f"workers died {self._deaths} times without a new checkpoint (the last: {newest}): "
                f"{next(iter(worker_exceptions.values()))}"
            )


class SaveFirst(WorkerGroupCallback, ControllerCallback):
    """Lets workers save before they are replaced.

    They note SIGTERM, which the training function cannot, as Ray runs it in a thread. And they are
    told when Ray Train is about to change their number, which it would do without a word.
    """

    def __init__(self) -> None:
        self._group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        worker_group.execute(note_sigterm)
        self._group = worker_group

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, ResizingState):
            try:
                self._group.execute(end_and_wait, PATIENCE)
            except RayError as error:
                logger.warning("no checkpoint before the number of workers changes: %s", error)


@contextlib.contextmanager
def sigterm_asks_to_stop(file: str) -> Iterator[None]:
    """In the main thread, SIGTERM writes the file that asks the workers to save and end."""
    delete_folder(posixpath.dirname(file))
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: write_bytes(file, b""))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def to_user_error(error: TrainingFailedError) -> Exception:
    """What a worker had to say to the user, if that is why it stopped; else the error itself."""
    if isinstance(error, ControllerError):
        return _user_error([error.controller_failure]) or error
    assert isinstance(error, WorkerGroupError)
    return _user_error(error.worker_failures.values()) or error


def _user_error(failures: Iterable[BaseException]) -> UserError | None:
    for failure in failures:
        for reason in (failure, failure.__cause__):
            if isinstance(reason, UserError):
                return reason
    return None
