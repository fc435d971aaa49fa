"""The driver's reactions to errors of its workers and resizes."""

import logging
from collections.abc import Iterable
from typing import Any

from ray.exceptions import RayError
from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError

from img2prompt.distributed.internals import TrainCallback, is_resizing
from img2prompt.errors import UserError
from img2prompt.train.checkpoint import CheckpointStore
from img2prompt.train.health import end_and_wait, note_sigterm

logger = logging.getLogger(__name__)

SAVE_TIMEOUT_S = 600.0
"""Seconds that workers have to save before their number changes; they may be validating."""
RETRIES = 8
"""Times that workers are replaced without a new checkpoint before the run fails."""


def own_callbacks(store: CheckpointStore) -> list[Any]:
    """Return the Ray Train callbacks of every run."""
    return [StopOnUserError(), LimitDeaths(store), SaveBeforeResize()]


class StopOnUserError(UserCallback):
    """Ends a run at the first UserError of a worker: a new worker would raise it again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if error := _user_error(worker_exceptions.values()):
            raise error  # Ray Train does not retry after an error in a callback


class LimitDeaths(UserCallback):
    """Ends a run whose workers die repeatedly without a new checkpoint.

    Ray Train's own limit counts the deaths of a whole run, so a long run on machines that are taken
    away would reach any limit.
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


class SaveBeforeResize(TrainCallback):
    """Makes workers save before they are replaced.

    Workers note SIGTERM in their main thread: Ray runs the training function in another thread,
    which cannot. They also save when Ray Train is about to change their number, of which it does
    not notify them itself.
    """

    def __init__(self) -> None:
        self._group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        worker_group.execute(note_sigterm)
        self._group = worker_group

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if is_resizing(current_state):
            try:
                self._group.execute(end_and_wait, SAVE_TIMEOUT_S)
            except RayError as error:
                logger.warning("no checkpoint before the number of workers changes: %s", error)


def to_user_error(error: TrainingFailedError) -> Exception:
    """Return the UserError of a worker if that ended the run, else the error itself."""
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
