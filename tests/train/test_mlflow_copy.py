"""Metrics on an MLflow server that answers, is dead, hangs, or comes back.

A stand-in plays MLflow's client; where MLflow is installed, its own client talks to real sockets.
"""

import http.server
import importlib.machinery
import json
import logging
import os
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from img2prompt.errors import UserError
from img2prompt.train import mlflow_copy
from img2prompt.train.mlflow_copy import LIMITS, MlflowCopy, require_mlflow
from img2prompt.train.steplog import LINES, StepLog

URI = "http://server:5000"


class Server:
    """MLflow's client and its server in one: `fails` and `hangs` say how it answers."""

    def __init__(self) -> None:
        self.fails = False
        self.hangs = threading.Event()
        self.hangs.set()  # it answers at once
        self.experiment: str | None = None
        self.runs: list[str] = []
        self.parameters: dict[str, str] = {}
        self.metrics: list[tuple[str, float, int]] = []
        self.requests: list[int] = []
        self.ended = False

    def answer(self) -> None:
        self.hangs.wait()
        if self.fails:
            raise ConnectionError("connection refused\nmore")

    def get_experiment_by_name(self, name: str) -> Any:
        self.answer()
        return SimpleNamespace(experiment_id="7") if name == self.experiment else None

    def create_experiment(self, name: str) -> str:
        self.answer()
        self.experiment = name
        return "7"

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.answer()
        self.runs.append(f"{experiment}/{run_name}")
        return SimpleNamespace(info=SimpleNamespace(run_id=f"run-{len(self.runs)}"))

    def log_batch(
        self, run: str, metrics: Any = (), params: Any = (), *, synchronous: bool
    ) -> None:
        self.answer()
        assert synchronous
        assert run == f"run-{len(self.runs)}"
        self.parameters |= dict(params)
        self.metrics += [(name, value, step) for name, value, _, step in metrics]
        self.requests += [len(metrics)] if metrics else []

    def set_terminated(self, run: str) -> None:
        self.answer()
        self.ended = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    answers = Server()
    module = types.ModuleType("mlflow")
    module.__spec__ = importlib.machinery.ModuleSpec("mlflow", None)
    module.entities = SimpleNamespace(  # type: ignore[attr-defined]
        Metric=lambda *fields: fields, Param=lambda key, value: (key, value)
    )

    def client(tracking_uri: str) -> Server:
        assert tracking_uri == URI
        return answers

    module.MlflowClient = client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setattr(mlflow_copy, "RETRY_S", 0.05)
    monkeypatch.setattr(mlflow_copy, "END_S", 0.5)
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    yield answers
    answers.hangs.set()


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_gets_every_number_and_setting(server: Server) -> None:
    copy = MlflowCopy(URI, "lora", {"optim.lr": 0.1, "name": "lora"})
    for step in range(120):
        copy.add({"loss": step / 2, "mfu": 0.5}, step)
    copy.close()
    assert server.runs == ["7/lora"]
    assert server.parameters == {"optim.lr": "0.1", "name": "lora"}
    assert server.metrics == [
        (name, value, step)
        for step in range(120)
        for name, value in (("loss", step / 2), ("mfu", 0.5))
    ]
    assert max(server.requests) <= 1000
    assert server.ended


def test_many_settings_go_in_several_requests(server: Server) -> None:
    settings = {f"s{number}": number for number in range(250)}
    MlflowCopy(URI, "lora", settings).close()
    assert len(server.parameters) == 250


def test_an_existing_experiment_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.experiment = mlflow_copy.EXPERIMENT
    monkeypatch.setattr(server, "create_experiment", lambda name: pytest.fail("made again"))
    MlflowCopy(URI, "lora", {}).close()
    assert server.ended


def test_a_dead_server_is_warned_of_once_and_waited_for_briefly(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.fails = True
    with caplog.at_level(logging.WARNING):
        copy = MlflowCopy(URI, "lora", {})
        for step in range(5):
            began = time.perf_counter()
            copy.add({"loss": 0.5}, step)
            assert time.perf_counter() - began < 0.05
            time.sleep(0.06)
        began = time.perf_counter()
        copy.close()
    assert time.perf_counter() - began < 0.4
    first, last = (record.getMessage() for record in caplog.records)
    assert first == (
        f"MLflow at {URI} does not answer (connection refused): training goes on, and metrics are "
        "sent when it does"
    )
    assert last.startswith(f"MLflow at {URI}: 5 of 5 lines of metrics were not sent; the run's own")


def test_a_server_that_hangs_costs_a_step_nothing_and_the_end_a_limit(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    copy = MlflowCopy(URI, "lora", {})
    copy.add({"loss": 0.5}, 1)
    wait_for(lambda: server.metrics)
    server.hangs.clear()
    for step in range(2, 5):
        began = time.perf_counter()
        copy.add({"loss": 0.5}, step)
        assert time.perf_counter() - began < 0.05
    began = time.perf_counter()
    copy.close()
    assert 0.5 <= time.perf_counter() - began < 2
    assert "3 of 4 lines of metrics were not sent" in caplog.text


def test_what_is_missing_is_sent_when_the_server_is_back(server: Server) -> None:
    server.fails = True
    copy = MlflowCopy(URI, "lora", {"a": 1})
    for step in range(3):
        copy.add({"loss": 0.5}, step)
        time.sleep(0.03)
    server.fails = False
    wait_for(lambda: len(server.metrics) == 3)
    server.fails = True
    copy.add({"loss": 0.5}, 3)
    time.sleep(0.1)
    server.fails = False
    copy.close()
    assert [step for _, _, step in server.metrics] == [0, 1, 2, 3]
    assert (server.parameters, server.ended) == ({"a": "1"}, True)


def test_a_run_whose_settings_are_refused_at_first_is_created_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry sends what the server has not acknowledged, to the same run."""
    refusals, calls, log_batch = [True, True], [], server.log_batch

    def refuse_second_parts(run: str, **batch: Any) -> None:
        calls.append(len(batch.get("params", [])))
        if batch.get("params") == [("s100", "100")] and refusals:
            refusals.pop()
            raise ConnectionError("connection reset")
        log_batch(run, **batch)

    monkeypatch.setattr(server, "log_batch", refuse_second_parts)
    copy = MlflowCopy(URI, "lora", {f"s{number}": number for number in range(101)})
    copy.add({"loss": 0.5}, 1)
    wait_for(lambda: server.metrics)
    copy.close()
    assert server.runs == ["7/lora"]
    assert len(server.parameters) == 101
    assert calls == [100, 1, 1, 1, 0]


def test_few_lines_wait_for_a_dead_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_copy, "MOST_WAITING", 4)
    server.fails = True
    copy = MlflowCopy(URI, "lora", {})
    for step in range(9):
        copy.add({"loss": 0.5}, step)
    server.fails = False
    copy.close()
    assert [step for _, _, step in server.metrics] == [5, 6, 7, 8]


def test_a_users_own_limits_are_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    MlflowCopy(URI, "lora", {}).close()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_a_step_log_sends_its_numbers(server: Server, tmp_path: Path) -> None:
    log = StepLog(str(tmp_path), "run", mlflow=URI, settings={"optim.lr": 0.1})
    log.add(0.5, 2)
    log.line(step=7, epoch=1)
    log.epoch({"epoch": 1, "val_cosine": 0.25, "note": "text"}, step=8)
    log.close()
    assert server.runs == ["7/run"]
    assert ("loss", 0.5, 7) in server.metrics
    assert ("val_cosine", 0.25, 8) in server.metrics
    assert not {"step", "note"} & {name for name, *_ in server.metrics}
    assert len((tmp_path / LINES).read_text().splitlines()) == 2


def test_mlflow_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_mlflow("")
    monkeypatch.setattr(mlflow_copy.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="MLflow is not installed: pip install mlflow-skinny"):
        require_mlflow(URI)


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def rest_server(bodies: list[tuple[str, dict]]) -> Iterator[str]:
    """A server that answers the calls of MLflow's REST interface and records them."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"experiment": {"experiment_id": "1", "name": "img2prompt"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append((self.path.rpartition("/")[2], body))
            info = {"run_id": "r1", "experiment_id": "1", "status": "RUNNING"}
            self.reply({"run": {"info": info, "data": {}}, "run_info": info})

        def reply(self, fields: dict) -> None:
            data = json.dumps(fields).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def real_mlflow() -> None:
    """The client itself, imported before anything is timed."""
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow-skinny")


def test_mlflows_own_client_sends_what_the_stand_in_receives(real_mlflow: None) -> None:
    bodies: list[tuple[str, dict]] = []
    with rest_server(bodies) as uri:
        copy = MlflowCopy(uri, "lora", {"optim.lr": 0.1})
        copy.add({"loss": 0.5}, 3)
        copy.close()
    batches = [body for call, body in bodies if call == "log-batch"]
    assert [call for call, _ in bodies] == ["create", "log-batch", "log-batch", "update"]
    assert batches[0]["params"] == [{"key": "optim.lr", "value": "0.1"}]
    (metric,) = batches[1]["metrics"]
    assert (metric["key"], metric["value"], int(metric["step"])) == ("loss", 0.5, 3)


@pytest.mark.parametrize("kind", ["dead", "silent"])
def test_mlflows_own_client_holds_nothing_up(
    real_mlflow: None, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mlflow_copy, "END_S", 1.0)
    with silent_server() as uri:
        if kind == "dead":
            uri = "http://127.0.0.1:9"
        copy = MlflowCopy(uri, "lora", {})
        began = time.perf_counter()
        copy.add({"loss": 0.5}, 3)
        assert time.perf_counter() - began < 0.05
        copy.close()
        assert time.perf_counter() - began < 3
    messages = [record.getMessage() for record in caplog.records]
    assert not [message for message in messages if "Retrying" in message]
    assert "1 of 1 lines of metrics were not sent" in messages[-1]
