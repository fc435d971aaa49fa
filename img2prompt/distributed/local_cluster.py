"""Start a Ray cluster on this machine, which ends with the job."""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from img2prompt.distributed.environment import TRAINING, changed_environment
from img2prompt.distributed.internals import fatal_driver_logs, session_folder
from img2prompt.distributed.machine import (
    check_open_files,
    children,
    ended_with_ray,
    python_folder,
    ray_folder,
)
from img2prompt.distributed.placement import OWN_CLUSTER, usable_cores
from img2prompt.errors import UserError
from img2prompt.signals import handlers_kept

log = logging.getLogger(__name__)

START_ATTEMPTS = 2
START_TIMEOUT_S = "180"
"""Seconds that each kind of Ray's processes has to start on this machine."""


@contextmanager
def started(cpus: int, options: Mapping[str, Any]) -> Iterator[None]:
    """Run a cluster with `cpus` logical CPUs in the block; `options` are those of `ray.init`.

    Raises:
        UserError: this machine has too few open files, or Ray did not start in time.
    """
    check_open_files(cpus)
    with (
        python_folder() as temporary,
        changed_environment(_local_environment() | TRAINING | {"TMPDIR": temporary}),
        ray_folder() as folder,
    ):
        try:
            earlier = children()
            _start(folder, {"num_cpus": cpus, **options})
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
            log.info("started a cluster with %d logical CPUs on this machine", cpus)
            with ended_with_ray(earlier, folder):
                yield
        finally:
            ray.shutdown()


def _start(folder: str, options: Mapping[str, Any]) -> None:
    """Start Ray's processes; try again where a busy machine exceeds Ray's time limits.

    Raises:
        UserError: the last attempt exceeded them, too.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        earlier = children()
        try:
            with handlers_kept(), fatal_driver_logs():
                ray.init(address="local", **session_folder(folder), **options)
            return
        except Exception as error:
            if "timed out" not in str(error).lower():
                raise
            ray.shutdown()
            for process in children() - earlier:
                process.kill()
            problem = f"Ray did not start within its time limits: {error}"
            if attempt == START_ATTEMPTS:
                raise UserError(
                    f"{problem} This machine may be too busy ({os.getloadavg()[0]:.0f} processes "
                    f"want to run on {usable_cores()} cores): run the command again later"
                ) from error
            log.warning("%s Trying again", problem)


def _local_environment() -> dict[str, str]:
    """Return variables for a local cluster: no usage statistics, and a token of its own.

    A token that the user chose is used instead. Ray's default would read and write
    ~/.ray/auth_token.
    """
    variables = {
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),
        "RAY_ADDRESS": "",
        OWN_CLUSTER: "" if os.environ.get("RAY_ADDRESS") else "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's limits are for idle machines.
        "RAY_gcs_server_port_wait_time_s": START_TIMEOUT_S,
        "RAY_raylet_start_wait_time_s": START_TIMEOUT_S,
        "RAY_worker_register_timeout_seconds": START_TIMEOUT_S,
        # This machine is not preemptible, and Ray's watcher logs an error when it starts.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        variables["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return variables
