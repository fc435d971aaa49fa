"""Checks of the machine, as functions; none of them starts Ray."""

import http.server
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from img2prompt.distributed import machine
from img2prompt.distributed.machine import (
    PYTHON_SOCKET,
    RAY_SOCKET,
    SOCKET_PATH,
    check_cluster,
    check_open_files,
    python_folder,
    ray_folder,
    short_path,
)
from img2prompt.errors import UserError

LONG = "a-folder-whose-name-alone-is-longer-than-most-others/" * 2


@pytest.mark.parametrize("hard", [64, 191])
def test_a_low_limit_on_open_files_is_refused_with_what_is_needed(monkeypatch, hard: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (hard, hard))
    with pytest.raises(UserError, match=rf"`ulimit -Hn`\) is {hard}; needed: at least 192 for 4"):
        check_open_files(cpus=4)


@pytest.mark.parametrize("hard", [192, 1 << 20, resource.RLIM_INFINITY])
def test_only_the_hard_limit_on_open_files_counts(monkeypatch, hard: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, hard))
    check_open_files(cpus=4)


def test_a_missing_ray_tmpdir_is_refused_by_name(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "absent"))
    message = rf"RAY_TMPDIR is '{tmp_path}/absent'\): No such file or directory\. Set RAY_TMPDIR to"
    with pytest.raises(UserError, match=message), ray_folder():
        pass


def test_a_long_ray_tmpdir_is_used_through_a_short_link(monkeypatch, tmp_path: Path) -> None:
    long = tmp_path / LONG
    long.mkdir(parents=True)
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with ray_folder() as folder:
        assert Path(folder).resolve().parent == long
        path = Path(folder + RAY_SOCKET)
        assert len(os.fsencode(path)) <= SOCKET_PATH
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    assert list(long.iterdir()) == []
    assert not os.path.lexists(folder)


def test_a_long_tmpdir_is_used_through_a_short_link(monkeypatch, tmp_path: Path) -> None:
    long = tmp_path / LONG
    long.mkdir(parents=True)
    (long / "other").touch()
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(long))
    with python_folder() as folder:
        assert Path(folder).resolve() == long
        assert len(os.fsencode(folder + PYTHON_SOCKET)) <= SOCKET_PATH
    assert (long / "other").exists(), "the link is deleted, not its target"


def test_a_path_is_linked_from_the_first_byte_too_many(tmp_path: Path) -> None:
    room = SOCKET_PATH - len(str(tmp_path))
    with short_path(str(tmp_path), "x" * room) as path:
        assert path == str(tmp_path)
    with short_path(str(tmp_path), "x" * (room + 1)) as path:
        assert path != str(tmp_path)


@pytest.mark.parametrize(
    ("error", "kept"), [(None, False), (UserError("yours"), False), (RuntimeError("ours"), True)]
)
def test_logs_are_kept_after_an_unexpected_error_only(error, kept, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))

    def use_folder() -> None:
        with ray_folder():
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            use_folder()
    else:
        use_folder()
    assert bool(list(tmp_path.iterdir())) == kept
    assert ("logs are kept" in caplog.text) == kept


class Web(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_an_http_port_is_no_cluster() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=r"no Ray cluster, whose port is usually 6379"):
            check_cluster(f"127.0.0.1:{server.server_port}")
        assert time.monotonic() - began < 5
        server.shutdown()


def test_a_port_that_never_answers_is_no_cluster(monkeypatch) -> None:
    monkeypatch.setattr(machine, "JOIN_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with pytest.raises(ConnectionError, match=r"no answer within 0\.2 s"):
            check_cluster(f"127.0.0.1:{port}")


def serve(answer: grpc.StatusCode | None) -> tuple[grpc.Server, str]:
    """A server of gRPC that answers the question for life like Ray, or with a status."""

    def check_alive(request: bytes, context: grpc.ServicerContext) -> bytes:
        if answer:
            context.abort(answer, "as configured")
        return b""

    handler = grpc.unary_unary_rpc_method_handler(check_alive)
    service = {"CheckAlive": handler} if answer != grpc.StatusCode.UNIMPLEMENTED else {}
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", service)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


@pytest.mark.parametrize("answer", [None, grpc.StatusCode.UNAUTHENTICATED])
def test_a_cluster_with_or_without_a_token_passes(answer, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server, address = serve(answer)
    check_cluster(address)
    server.stop(0)


def test_another_service_of_grpc_is_no_cluster() -> None:
    server, address = serve(grpc.StatusCode.UNIMPLEMENTED)
    with pytest.raises(ConnectionError, match="another service"):
        check_cluster(address)
    server.stop(0)


END = """
import os, shutil, subprocess, sys, time
from img2prompt.distributed import machine
machine.ENDING_S = 0.1
head = shutil.copy("/bin/sleep", sys.argv[1] + "/gcs_server")
process = subprocess.Popen([head, "100"])
with machine.ended_with_ray(set(), sys.argv[1]):
    if sys.argv[2] == "end":
        process.kill()
        time.sleep(60)
process.kill()
time.sleep(0.5)
print("still here")
"""


def test_a_cluster_without_a_head_of_its_own_is_not_watched(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.threading, "Thread", None)
    with machine.ended_with_ray(machine.children(), str(tmp_path)):
        pass


@pytest.mark.parametrize("ends", [True, False])
def test_a_job_ends_with_the_head_of_its_own_cluster(tmp_path: Path, ends: bool) -> None:
    command = [sys.executable, "-c", END, str(tmp_path), "end" if ends else "leave"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == (128 + signal.SIGTERM if ends else 0), done.stderr
    assert ("run the same command again to resume" in done.stderr) == ends
    assert tmp_path.exists() != ends
