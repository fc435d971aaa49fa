"""What the driver of a run does about errors of its workers, and about SIGTERM."""

import contextlib
import posixpath
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from img2prompt.errors import UserError
from img2prompt.stages.health import listen
from img2prompt.storage import delete_folder, write_bytes


def own_callbacks() -> list[Any]:
    """Ray Train's callbacks of every run."""
    return [StopOnUserError(), ListenForSigterm()]


class StopOnUserError(UserCallback):
    """Ends a run at the first UserError of a worker: the same would happen to a new worker."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if told := _user_error(worker_exceptions.values()):
            raise told  # Ray Train never retries an error of a callback


class ListenForSigterm(WorkerGroupCallback):
    """Lets workers note SIGTERM: Ray runs the training function in a thread, which cannot."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        worker_group.execute(listen)


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


def told_to_users(error: TrainingFailedError) -> Exception:
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
