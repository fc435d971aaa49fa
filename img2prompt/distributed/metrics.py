"""Metrics of img2prompt in Ray's Prometheus export, which `cluster/grafana.json` shows.

Ray exports them on every node with the prefix `ray_`, beside its own. They are recorded where a
cluster runs, and ignored elsewhere. The names are an interface: dashboards and alerts use them.
"""

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Spec:
    """A metric's kind, description and labels."""

    kind: Literal["Counter", "Gauge"]
    description: str
    labels: tuple[str, ...]


RUN, STAGE, SEARCH = ("run",), ("stage",), ("search",)
METRICS: Mapping[str, Spec] = {
    "img2prompt_rows": Spec("Counter", "Rows that a stage has finished.", STAGE),
    "img2prompt_rows_per_second": Spec("Gauge", "Rows per second of a stage so far.", STAGE),
    "img2prompt_rejected_rows": Spec(
        "Counter", "Rows that a stage rejected, by kind of reason.", ("stage", "reason")
    ),
    "img2prompt_images_per_second": Spec("Gauge", "Pictures per second, all workers.", RUN),
    "img2prompt_loss": Spec("Gauge", "Mean training loss since the line before.", RUN),
    "img2prompt_val_cosine": Spec("Gauge", "Mean cosine on the validation split.", RUN),
    "img2prompt_step_seconds": Spec(
        "Gauge", "Seconds of a step in a phase: data, compute, step.", ("run", "phase")
    ),
    "img2prompt_data_stall_share": Spec("Gauge", "Share of a step that waits for data.", RUN),
    "img2prompt_mfu": Spec("Gauge", "Share of the device's peak FLOP/s, where it is known.", RUN),
    "img2prompt_device_hours": Spec("Gauge", "GPU-hours (CPU-hours) of a run so far.", RUN),
    "img2prompt_trials": Spec("Gauge", "Trials of a search by state.", ("search", "state")),
    "img2prompt_search_best_val_cosine": Spec("Gauge", "Best validation cosine so far.", SEARCH),
    "img2prompt_search_device_hours": Spec("Gauge", "Device-hours of all trials so far.", SEARCH),
    "img2prompt_search_device_hours_left": Spec(
        "Gauge", "Device-hours to the end, or to the limit.", SEARCH
    ),
}
PHASES = {"data_s": "data", "compute_s": "compute", "step_s": "step"}
GAUGES = {
    "loss": "img2prompt_loss",
    "val_cosine": "img2prompt_val_cosine",
    "images_per_s": "img2prompt_images_per_second",
    "mfu": "img2prompt_mfu",
    "worker_hours": "img2prompt_device_hours",
}
"""Columns of a run's metrics.jsonl, and their metrics."""


@functools.cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    spec = METRICS[name]
    return getattr(metrics, spec.kind)(name, spec.description, spec.labels)


def _has_cluster() -> bool:
    """Return whether this process has joined a cluster; jobs without one never import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def count(name: str, amount: float, **labels: str) -> None:
    """Add to a counter."""
    if amount and _has_cluster():
        _metric(name).inc(amount, labels)


def record(name: str, value: float | None, **labels: str) -> None:
    """Set a gauge; None leaves it as it is."""
    if value is not None and _has_cluster():
        _metric(name).set(value, labels)


def count_rejected(stage: str, kinds: Mapping[str, int]) -> None:
    """Add rejected rows by kind of reason."""
    for kind, rows in kinds.items():
        count("img2prompt_rejected_rows", rows, stage=stage, reason=kind)


def record_line(run: str, line: Mapping[str, Any]) -> None:
    """Set the gauges of a run from a line of its metrics.jsonl."""
    for column, name in GAUGES.items():
        record(name, line.get(column), run=run)
    seconds = {phase: line[column] for column, phase in PHASES.items() if column in line}
    for phase, value in seconds.items():
        record("img2prompt_step_seconds", value, run=run, phase=phase)
    if total := sum(seconds.values()):
        record("img2prompt_data_stall_share", seconds["data"] / total, run=run)
