"""A copy of a run's metrics on an MLflow server, sent outside the training step.

The run's own files are complete; the server gets a copy from a thread, several lines a request.
A server that is dead, slow or hangs costs a step nothing: there is one warning, the thread tries
again every RETRY_S seconds, and `close` waits END_S seconds at most for what is missing. One such
server held up a public training run for 15 hours (radixark/miles, issue 2571).
"""

import importlib
import importlib.util
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from img2prompt.errors import UserError

logger = logging.getLogger(__name__)

EXPERIMENT = "img2prompt"
MOST_WAITING = 10_000
"""Lines that wait for the server; older ones are given up. At a line in 15 s, two days."""
LINES_AT_ONCE = 50
"""Lines in one request, which may hold 1,000 metrics."""
PARAMETERS_AT_ONCE = 100
RETRY_S = 30.0
END_S = 5.0
"""Most seconds that the end of a run waits for the server."""

LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""MLflow's variables, unless the user has set them; its own defaults retry for many minutes."""


def require_mlflow(uri: str) -> None:
    """Raise a UserError if MLflow is configured but not installed."""
    if uri and importlib.util.find_spec("mlflow") is None:
        raise UserError(
            f"engine.mlflow is {uri!r}, and MLflow is not installed: pip install mlflow-skinny on "
            "all machines, or leave this setting empty"
        )


@dataclass(frozen=True)
class _Line:
    step: int
    numbers: Mapping[str, float]
    milliseconds: int = field(default_factory=lambda: int(1000 * time.time()))


class MlflowCopy:
    """Sends the metrics of one run to an MLflow server, from a thread of its own."""

    def __init__(self, uri: str, name: str, settings: Mapping[str, Any]) -> None:
        """Begin; `name` and `settings` are those of the MLflow run.

        Raises:
            UserError: MLflow is not installed.
        """
        require_mlflow(uri)
        self._uri = uri
        self._name = name
        self._settings = dict(settings)
        self._waiting: deque[_Line] = deque(maxlen=MOST_WAITING)
        self._added = 0
        self._sent = 0
        self._run: _MlflowRun | None = None
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._is_warned = False
        self._thread = threading.Thread(target=self._send_until_closed, daemon=True, name="mlflow")
        self._thread.start()

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Send a line of metrics soon; returns at once."""
        self._waiting.append(_Line(step, dict(numbers)))
        self._added += 1
        self._wake.set()

    def close(self) -> None:
        """Try for END_S seconds to send what is missing, and warn of what is not sent."""
        self._closing.set()
        self._wake.set()
        self._thread.join(END_S)
        self._is_warned = True  # a request that fails later is part of this message
        if missing := self._added - self._sent:
            logger.warning(
                "MLflow at %s: %d of %d lines of metrics were not sent; the run's own files have "
                "all of them",
                self._uri,
                missing,
                self._added,
            )

    def _send_until_closed(self) -> None:
        for name, value in LIMITS.items():
            os.environ.setdefault(name, value)
        while True:
            self._wake.clear()
            is_last = self._closing.is_set()
            failed = not self._try_to_send(is_last)
            if is_last:
                return
            if failed:
                self._closing.wait(RETRY_S)
            else:
                self._wake.wait()

    def _try_to_send(self, is_last: bool) -> bool:
        """Send what waits; end the MLflow run if this `is_last`. Return False if that failed."""
        try:
            if self._run is None:
                self._run = _MlflowRun(self._uri, self._name)
            self._send_settings(self._run)
            while lines := list(itertools.islice(self._waiting, LINES_AT_ONCE)):
                self._run.send(lines)
                for _ in lines:
                    self._waiting.popleft()
                self._sent += len(lines)
            if is_last:
                self._run.end()
        except Exception as error:  # the client raises errors of many libraries
            if not self._is_warned:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                logger.warning(
                    "MLflow at %s does not answer (%s): training goes on, and metrics are sent "
                    "when it does",
                    self._uri,
                    first[:200],
                )
            self._is_warned = True
            return False
        return True

    def _send_settings(self, run: "_MlflowRun") -> None:
        """Send the settings that are missing on the server."""
        while part := list(itertools.islice(self._settings.items(), PARAMETERS_AT_ONCE)):
            run.send_settings(part)
            for name, _ in part:
                del self._settings[name]


class _MlflowRun:
    """A run on an MLflow server. Every method may fail or wait for the server."""

    def __init__(self, uri: str, name: str) -> None:
        # Not the module's functions: they register an end of the run that waits at exit.
        self._mlflow: Any = importlib.import_module("mlflow")
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = (
            experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        )
        self._id = self._client.create_run(number, run_name=name).info.run_id

    def send_settings(self, settings: Iterable[tuple[str, Any]]) -> None:
        parameters = [self._mlflow.entities.Param(name, str(value)) for name, value in settings]
        self._client.log_batch(self._id, params=parameters, synchronous=True)

    def send(self, lines: list[_Line]) -> None:
        metrics = [
            self._mlflow.entities.Metric(name, value, line.milliseconds, line.step)
            for line in lines
            for name, value in line.numbers.items()
        ]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)

    def end(self) -> None:
        self._client.set_terminated(self._id)
