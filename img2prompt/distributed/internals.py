"""Ray's private API: img2prompt touches it in this file only.

Each function says why Ray's public API is not enough. `tests/distributed/test_internals.py` checks
every name and behaviour used here: run it first after an upgrade of Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ray._private import worker
from ray._raylet import (
    AuthenticationTokenLoader,  # type: ignore[missing-module-attribute]
    Config,  # type: ignore[missing-module-attribute]
    PlacementGroupID,
)
from ray.train import PreemptionInfo
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ResizingState
from ray.train.v2.api import config
from ray.util.placement_group import PlacementGroup

if TYPE_CHECKING:
    from ray.tune.schedulers import ASHAScheduler

LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"

# `ray.train` exports these classes or those of Ray Train's first version, depending on an
# environment variable; a type checker therefore refuses the arguments of either.
FailureConfig = config.FailureConfig
LoggingConfig = config.LoggingConfig
RunConfig = config.RunConfig
ScalingConfig = config.ScalingConfig


def apply_authentication_settings() -> None:
    """Make Ray's core follow the RAY_AUTH_* variables as they are now.

    The core reads RAY_AUTH_MODE once at import, and Ray has no public call to read it again. A
    driver that changed the variables would have no token for the processes that it starts, and
    `ray.init` would fail after 20 s.
    """
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def session_folder(folder: str) -> dict[str, Any]:
    """Return the option of `ray.init` that puts the sockets and logs of a new cluster in `folder`.

    The public variable RAY_TMPDIR would be inherited by every process that the driver starts.
    """
    return {"_temp_dir": folder}


@contextlib.contextmanager
def fatal_driver_logs() -> Iterator[None]:
    """Let `ray.init` in this block print fatal lines only of the driver's core, on a local cluster.

    The core reports each actor of Ray Data that could be restarted as an ERROR: the actor's
    arguments are in the object store, whose only copy is lost with the driver anyway. The level is
    an environment variable, which Ray's other processes, whose logs are files, would inherit if it
    were set before they start. The core prints a line about the variable itself.
    """
    connect = worker.connect

    def connect_with_level(*arguments: Any, **options: Any) -> Any:
        if LOG_LEVEL in os.environ:
            return connect(*arguments, **options)
        os.environ[LOG_LEVEL] = "fatal"
        try:
            with _no_stderr():
                return connect(*arguments, **options)
        finally:
            del os.environ[LOG_LEVEL]

    worker.connect = connect_with_level
    try:
        yield
    finally:
        worker.connect = connect


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Discard what any code of this process, Python or not, writes to its standard error."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def placement_group_from_id(hex_id: str) -> PlacementGroup:
    """Return the handle of a placement group of any job, by the id that Ray's State API lists.

    The public `get_placement_group` takes a name, and Ray Train gives its groups none.
    """
    return PlacementGroup(PlacementGroupID(bytes.fromhex(hex_id)))


def quieten_worker_reports() -> None:
    """Stop Ray Train's log line for every `ray.train.report` of every rank, in a worker.

    The logger is named after a file inside Ray, and `LoggingConfig` does not reach it.
    """
    context.logger.setLevel(logging.WARNING)


def preemption_notice() -> PreemptionInfo | None:
    """Return the newest notice that nodes of this run are about to be taken away, in a worker.

    The public `ray.train.get_preemption_info` is a barrier of all workers, too slow for every step.
    """
    return context.get_train_context().preemption_context.preemption_info


class TrainCallback(WorkerGroupCallback, ControllerCallback):
    """Base class of callbacks that follow a run's workers and the states of its controller.

    The public `ray.train.UserCallback` sees reports and exceptions only.
    """


def is_resizing(state: Any) -> bool:
    """Return whether a controller's state is the one in which the number of workers changes.

    Ray Train documents neither its states nor their names.
    """
    return isinstance(state, ResizingState)


def asha_rungs(scheduler: ASHAScheduler) -> list[tuple[float, dict[str, Any]]]:
    """Return each rung of ASHA, the lowest first: its milestone, and the score of each trial there.

    The public `debug_string` gives the cutoffs as text only.
    """
    rungs = [rung for bracket in scheduler._brackets for rung in bracket._rungs]
    return sorted(rungs, key=lambda rung: rung[0])
