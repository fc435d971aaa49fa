"""Join or start a Ray cluster with one call, set up logging, and report available resources.

`connect` is called once in a job. With RAY_ADDRESS in the environment, as `ray job submit` sets it,
it joins that cluster. Otherwise it starts a cluster on this machine that nobody else can join by
accident: it has its own folder and token, and only its own processes know its address.
"""

import importlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.exceptions import AuthenticationError

from img2prompt.distributed.environment import TRAINING, changed_environment
from img2prompt.distributed.local_cluster import started
from img2prompt.distributed.machine import check_cluster
from img2prompt.distributed.placement import LOG_FORMAT, usable_cores
from img2prompt.errors import UserError
from img2prompt.lease import KEEPER, WORKER
from img2prompt.signals import handlers_kept

log = logging.getLogger(__name__)

LOCAL_CPUS = 4
"""Fewest logical CPUs of a cluster on this machine: Ray Data beside Ray Train needs that many."""

CEILINGS = {"CPU": "IMG2PROMPT_MAX_CPUS", "GPU": "IMG2PROMPT_MAX_GPUS"}
"""Environment variables with the largest size of a cluster that autoscales; cluster/ sets them."""


@dataclass(frozen=True)
class Resources:
    """Resources of a cluster that one job has to itself."""

    cpus: float
    gpus: float


@contextmanager
def connect(
    *, cpus: int = 0, dashboard: bool = False, download: bool = False
) -> Iterator[Resources]:
    """Join the cluster of RAY_ADDRESS, or start a local one; leave it or stop it at the end.

    Inside another `connect` this yields the same cluster.

    Args:
        cpus: logical CPUs of a local cluster; 0: one per core, at least LOCAL_CPUS.
        dashboard: start the dashboard, which Ray Train inside Ray Tune needs to free the workers
            of stopped trials.
        download: allow workers to fetch weights from the hub.

    Raises:
        UserError: the cluster of RAY_ADDRESS cannot be joined.
    """
    if ray.is_initialized():
        yield resources()
        return
    _process_setup()()
    address = _address()
    options = {"runtime_env": _worker_environment(download), "logging_level": logging.WARNING}
    if address:
        session = _joined(address, options)
    else:
        cpus = cpus or max(LOCAL_CPUS, usable_cores())
        session = started(cpus, {**options, "include_dashboard": dashboard})
    with session:
        _quieten_ray_data()
        _limit_ray_data()
        yield resources()


def resources() -> Resources:
    """Return what the connected cluster has, or may grow to.

    Ray's autoscaler does not report its limit (`get_max_resources_from_cluster_config` returns
    nothing), so a cluster that grows declares it to its jobs through CEILINGS.
    """
    current = ray.cluster_resources()
    return Resources(
        cpus=max(current.get("CPU", 0), _declared("CPU")),
        gpus=max(current.get("GPU", 0), _declared("GPU")),
    )


def accelerators() -> list[str]:
    """Return the kinds of GPU that the cluster has now, in Ray's names: `H100`, `A100-40G`."""
    prefix = "accelerator_type:"
    names = ray.cluster_resources()
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def require(*, cpus: float = 0, gpus: float = 0) -> None:
    """Refuse (UserError) what the cluster can never provide: Ray would wait for it without end."""
    limits = resources()
    for name, needed, limit in (("CPU", cpus, limits.cpus), ("GPU", gpus, limits.gpus)):
        if needed > limit:
            raise UserError(
                f"this needs {needed:g} {name}s, the cluster has {limit:g} at most: configure "
                f"fewer workers, add nodes, or set {CEILINGS[name]} to the size it may grow to"
            )


def _declared(resource: str) -> int:
    text = os.environ.get(CEILINGS[resource], "0")
    if not text.isdecimal():
        raise UserError(f"{CEILINGS[resource]} is {text!r}; allowed: a whole number, 0 or more")
    return int(text)


def _process_setup() -> Callable[[], None]:
    """Return the setup of driver and workers: log img2prompt from INFO, the rest from WARNING.

    Ray pickles a nested function by value and a module's function by name, and workers of a
    running cluster can import this package only after this setup.
    """

    log_format = LOG_FORMAT

    def set_up() -> None:
        logging.basicConfig(format=log_format)
        logging.getLogger("img2prompt").setLevel(logging.INFO)
        logging.getLogger("ray").setLevel(logging.WARNING)
        if ray.is_initialized():
            # When this is unset, Ray's State API, which Ray Train uses inside Ray Tune, searches
            # the machine for a cluster and may find another one.
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address

    return set_up


def _address() -> str:
    """Return the address of the cluster to join; empty when RAY_ADDRESS names none."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        return ""
    host, _, port = address.rpartition(":")
    if address != "auto" and ("/" in address or not host or not port.isdecimal()):
        raise UserError(
            f"RAY_ADDRESS is {address!r}; allowed: HOST:PORT of a cluster this machine belongs to. "
            "To reach a cluster from outside, set RAY_API_SERVER_ADDRESS and use `ray job submit`"
        )
    return address


def _worker_environment(download: bool) -> dict[str, Any]:
    """Return the workers' runtime environment, without variables that the submitter set."""
    variables = {"HF_HUB_OFFLINE": "0" if download else "1", "TOKENIZERS_PARALLELISM": "false"}
    variables |= TRAINING | {WORKER: KEEPER.token}
    variables |= {name: os.environ[name] for name in CEILINGS.values() if name in os.environ}
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    own = (submitted.get("runtime_env") or {}).get("env_vars") or {}
    return {
        "env_vars": {name: value for name, value in variables.items() if name not in own},
        "worker_process_setup_hook": _process_setup(),
    }


@contextmanager
def _joined(address: str, options: Mapping[str, Any]) -> Iterator[None]:
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        # It asks for the working folder when it is imported. In a submitted job that is Ray's copy,
        # which a second node on the same machine deletes and unpacks again.
        importlib.import_module("torch._dynamo")
    has_token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    mode = os.environ.get("RAY_AUTH_MODE") or ("token" if has_token else "disabled")
    with changed_environment({"RAY_AUTH_MODE": mode} | TRAINING):
        try:
            check_cluster(address)
            with handlers_kept():
                ray.init(address=address, **options)
        except (OSError, RuntimeError, AuthenticationError) as error:
            raise UserError(
                f"no cluster could be joined at RAY_ADDRESS={address} with RAY_AUTH_MODE={mode}: "
                f"{error}. Unset RAY_ADDRESS to run on this machine alone"
            ) from error
        try:
            log.info("joined the cluster at %s", address)
            yield
        finally:
            ray.shutdown()


def _quieten_ray_data() -> None:
    """Silence the console handler that Ray Data adds at import; its log file keeps everything."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)


def _limit_ray_data() -> None:
    """Keep Ray Data from requesting more nodes than the cluster may grow to.

    It requests what would speed a stage up, and the autoscaler then reports every few seconds that
    no node type can fulfil the request.
    """
    limits = resources()
    declared = any(name in os.environ for name in CEILINGS.values())
    ray.data.DataContext.get_current().execution_options.resource_limits = (
        ray.data.ExecutionResources.for_limits(cpu=limits.cpus, gpu=limits.gpus)
        if declared
        else ray.data.ExecutionResources.for_limits()
    )
