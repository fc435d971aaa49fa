"""Check and prepare this machine before Ray starts: open files, short folders, the address to join.

Ray itself finds out late, and ends in tracebacks or waits for minutes.
"""

import logging
import os
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil

from img2prompt.errors import UserError
from img2prompt.signals import SHELL_OFFSET

log = logging.getLogger(__name__)

SOCKET_PATH = 107
"""Longest path of a Unix socket on Linux, in bytes."""
SHORT_FOLDER = "/tmp"
"""Folder of links to folders whose own paths are too long for sockets."""
RAY_SOCKET = "/session_2026-11-28_06-52-16_123456_1234567/sockets/dash_TaskEventsHead"
"""Longest path that Ray appends to its folder, for a process id of seven digits."""
PYTHON_SOCKET = "/pymp-12345678/listener-12345678"
"""Longest path that Python's multiprocessing, which Ray's dashboard uses, appends to TMPDIR."""

OPEN_FILES, OPEN_FILES_PER_CPU = 128, 16
"""Open files that one process of Ray needs. Measured with 4 CPUs: 75, and 64 are too few."""

HEAD = "gcs_server"
"""Name of the process of Ray that keeps a cluster together."""
ENDING_S = 3.0
"""Seconds that a job has to end by itself after Ray's head."""
RAY_ENDED = (
    "Ray's processes on this machine were ended: finished work and checkpoints are saved; run the "
    "same command again to resume\n"
)

JOIN_TIMEOUT_S = 10.0
"""Seconds that the cluster to join has to answer. Ray would try for up to 15 minutes."""


def check_open_files(cpus: int) -> None:
    """Refuse (UserError) a limit on open files that is too low for Ray on so many CPUs.

    Only the hard limit counts: Ray raises the soft one to it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OPEN_FILES + OPEN_FILES_PER_CPU * cpus
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"the limit on open files (`ulimit -Hn`) is {hard}; needed: at least {needed} for "
            f"{cpus} CPUs. Raise it in the shell, in /etc/security/limits.conf, or for a container "
            f"with `docker run --ulimit nofile=65536`"
        )


@contextmanager
def ray_folder() -> Iterator[str]:
    """Make a folder for Ray's sockets and logs, in RAY_TMPDIR or /tmp, with a path that is short.

    The folder is deleted at the end, unless an unexpected error occurs.

    Raises:
        UserError: the folder cannot be made.
    """
    parent = os.environ.get("RAY_TMPDIR") or SHORT_FOLDER
    folder = _make_folder(parent)
    failed = False
    try:
        with short_path(folder, RAY_SOCKET) as path:
            yield path
    except Exception as error:
        failed = not isinstance(error, UserError)
        raise
    finally:
        if failed:
            log.warning("Ray's logs are kept in %s", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def python_folder() -> Iterator[str]:
    """Yield the folder of TMPDIR, or a link to it that is short enough for sockets."""
    with short_path(tempfile.gettempdir(), PYTHON_SOCKET) as path:
        yield path


@contextmanager
def short_path(folder: str, socket: str) -> Iterator[str]:
    """Yield the folder's path, or a link to it if `socket` appended would exceed SOCKET_PATH."""
    if len(os.fsencode(folder + socket)) <= SOCKET_PATH:
        yield folder
        return
    links = _make_folder(SHORT_FOLDER)
    try:
        link = Path(links, "to")
        link.symlink_to(folder, target_is_directory=True)
        yield str(link)
    finally:
        shutil.rmtree(links, ignore_errors=True)  # deletes the link, not its target


def _make_folder(parent: str) -> str:
    try:
        return tempfile.mkdtemp(prefix="i2p-", dir=parent)
    except OSError as error:
        raise UserError(
            f"no folder for Ray's sockets and logs can be made in {parent} (RAY_TMPDIR is "
            f"{os.environ.get('RAY_TMPDIR', '')!r}): {error.strerror}. Set RAY_TMPDIR to a folder "
            "that exists and is writable"
        ) from error


@contextmanager
def ended_with_ray(earlier: Set[psutil.Process], folder: str) -> Iterator[None]:
    """End this process soon after Ray's head, a child that is not in `earlier`, is ended.

    A signal to a whole process group, as batch schedulers and `timeout` send, ends Ray as well.
    Calls to a dead head would hang for a minute and end without a message.
    """
    heads = [child for child in children() - earlier if child.name() == HEAD]
    if not heads:
        yield
        return
    closed = threading.Event()

    def watch() -> None:
        psutil.wait_procs(heads)
        if not closed.wait(ENDING_S):
            shutil.rmtree(folder, ignore_errors=True)
            os.write(2, RAY_ENDED.encode())
            os._exit(SHELL_OFFSET + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        closed.set()


def children() -> set[psutil.Process]:
    """Return all processes below this one."""
    return set(psutil.Process().children(recursive=True))


def check_cluster(address: str) -> None:
    """Raise ConnectionError unless a Ray cluster answers at HOST:PORT; `auto` is not checked."""
    if ":" not in address or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    options = [("grpc.enable_http_proxy", 0)]  # nodes of a cluster reach each other without one
    with grpc.insecure_channel(address, options) as channel:
        alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            alive(b"", timeout=JOIN_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return  # Ray, which `ray.init` gives the token
            raise ConnectionError(_reason(error)) from error


def _reason(error: grpc.RpcError) -> str:
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {JOIN_TIMEOUT_S:g} s"
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        return "another service than a cluster's answers; the port of a cluster is usually 6379"
    details = error.details() or ""
    if "refused" in details:
        return "connection refused"
    return (
        f"what answers is no Ray cluster, whose port is usually 6379 (8265 is its dashboard): "
        f"{details}"
    )
