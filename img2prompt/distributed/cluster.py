"""Where the stages run: one call that joins or starts a Ray cluster, logging, and what is there.

`connect` is called once a job. With RAY_ADDRESS in the environment, as `ray job submit` sets it,
it joins that cluster; else it starts one on this machine that nobody else can join by accident:
own folder, own token, and its address is known to its own processes only.
"""

import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.exceptions import AuthenticationError

from img2prompt.distributed.internals import apply_authentication_settings, session_folder
from img2prompt.errors import UserError

log = logging.getLogger(__name__)

LOCAL_CPUS = 4
"""Fewest logical CPUs of a cluster on this machine: Ray Data beside Ray Train needs that many."""

CEILINGS = {"CPU": "IMG2PROMPT_MAX_CPUS", "GPU": "IMG2PROMPT_MAX_GPUS"}
"""Variables in which a cluster that grows by itself declares how far; cluster/ sets them."""

TRAINING = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25"}
"""Ray Train asks its workers for one report at a time, every two seconds where this is not set:
short epochs would wait for it. Train and Tune leave workers in the folder of the driver, so that
relative paths in configs, such as `--tower.weights DIR`, mean the same there."""


@dataclass(frozen=True)
class Resources:
    """What a cluster can give to one job that is alone on it."""

    cpus: float
    gpus: float


@contextmanager
def connect(
    *, cpus: int = 0, dashboard: bool = False, download: bool = False
) -> Iterator[Resources]:
    """Join the cluster of RAY_ADDRESS or start one here; leave it, or stop it, at the end.

    `cpus`: logical CPUs of a local cluster (0: the cores, at least LOCAL_CPUS). `dashboard`: with
    the one that Ray Train inside Ray Tune needs to free the workers of stopped trials. `download`:
    workers may fetch weights from the hub. Inside another `connect` this yields the same cluster.
    Raises UserError when the cluster of RAY_ADDRESS cannot be joined.
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
        cpus = cpus or max(LOCAL_CPUS, len(os.sched_getaffinity(0)))
        session = _started(cpus, {**options, "include_dashboard": dashboard})
    with session:
        _quieten_ray_data()
        yield resources()


def resources() -> Resources:
    """What the connected cluster has, or may grow to.

    Ray's autoscaler does not say how far it may go (its `get_max_resources_from_cluster_config`
    finds nothing), so a cluster that grows tells its jobs through CEILINGS.
    """
    there = ray.cluster_resources()
    return Resources(
        cpus=max(there.get("CPU", 0), _declared("CPU")),
        gpus=max(there.get("GPU", 0), _declared("GPU")),
    )


def accelerators() -> list[str]:
    """Kinds of GPU that the connected cluster has now, as Ray names them: `H100`, `A100-40G`."""
    mark = "accelerator_type:"
    return [name.removeprefix(mark) for name in ray.cluster_resources() if name.startswith(mark)]


def require(*, cpus: float = 0, gpus: float = 0) -> None:
    """Refuse what the cluster can never give: Ray would wait for it without end (UserError)."""
    most = resources()
    for name, asked, there in (("CPU", cpus, most.cpus), ("GPU", gpus, most.gpus)):
        if asked > there:
            raise UserError(
                f"this needs {asked:g} {name}s, the cluster has {there:g} at most: ask for fewer "
                f"workers, add nodes, or declare how far it grows in {CEILINGS[name]}"
            )


def _declared(resource: str) -> int:
    text = os.environ.get(CEILINGS[resource], "0")
    if not text.isdecimal():
        raise UserError(f"{CEILINGS[resource]} is {text!r}; allowed: a whole number, 0 or more")
    return int(text)


def _process_setup() -> Callable[[], None]:
    """What the driver and every worker do first: log img2prompt from INFO, the rest from WARNING.

    A function inside a function travels to the workers whole; a plain one would travel by name, and
    the workers of a cluster that runs already can import this package only later.
    """

    def set_up() -> None:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("img2prompt").setLevel(logging.INFO)
        logging.getLogger("ray").setLevel(logging.WARNING)
        if ray.is_initialized():
            # Ray's State API, which Ray Train uses inside Ray Tune, looks for a cluster on the
            # machine when this is unset, and may find another one.
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address

    return set_up


def _address() -> str:
    """Address of the cluster to join; empty: none is named."""
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
    """Ray's runtime environment of the workers; variables that the submitter set are left alone."""
    variables = {"HF_HUB_OFFLINE": "0" if download else "1", "TOKENIZERS_PARALLELISM": "false"}
    variables |= TRAINING
    variables |= {name: os.environ[name] for name in CEILINGS.values() if name in os.environ}
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    given = (submitted.get("runtime_env") or {}).get("env_vars") or {}
    return {
        "env_vars": {name: value for name, value in variables.items() if name not in given},
        "worker_process_setup_hook": _process_setup(),
    }


@contextmanager
def _joined(address: str, options: Mapping[str, Any]) -> Iterator[None]:
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    mode = os.environ.get("RAY_AUTH_MODE") or ("token" if given else "disabled")
    with _environment({"RAY_AUTH_MODE": mode} | TRAINING):
        try:
            _knock(address)
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


@contextmanager
def _started(cpus: int, options: Mapping[str, Any]) -> Iterator[None]:
    with _environment(_local_environment() | TRAINING), _own_folder() as folder:
        try:
            ray.init(address="local", num_cpus=cpus, **session_folder(folder), **options)
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
            log.info("started a cluster with %d logical CPUs on this machine", cpus)
            yield
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """Fail at once (OSError) where nothing listens; Ray tries for more than five minutes."""
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _local_environment() -> dict[str, str]:
    """No usage statistics, and a token that only this run knows unless the user chose one.

    Ray's own choice depends on, and writes, ~/.ray/auth_token.
    """
    variables = {
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),
        "RAY_ADDRESS": "",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Nobody takes this machine away with a warning, and Ray's watcher logs an error at start.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        variables["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return variables


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables that Ray's core reads, and put them back as they were."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    apply_authentication_settings()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        apply_authentication_settings()


@contextmanager
def _own_folder() -> Iterator[str]:
    """A new folder for Ray's sockets and logs; kept when a run fails in an unforeseen way."""
    # Not tempfile's own choice: a socket's path may have 107 characters at most.
    folder = tempfile.mkdtemp(prefix="i2p-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    failed = False
    try:
        yield folder
    except Exception as error:
        failed = not isinstance(error, UserError)
        raise
    finally:
        if failed:
            log.warning("Ray's logs are kept in %s", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _quieten_ray_data() -> None:
    """Ray Data sets up a console of its own at import; its log file keeps everything."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)
