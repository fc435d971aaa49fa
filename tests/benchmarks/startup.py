"""Show where the time of a small job goes, in its own process and through Ray.

Three jobs run on a few drawn scenes, each in a process of its own: a probe of one epoch on cached
features, an evaluation that looks at the pictures, and eight predictions. Each runs twice: as a
user starts it, and with RAY_ADDRESS=local, which sends the work through Ray on this machine. Both
sides must give the same scores: the probe's to 1e-6, the evaluation's to 1e-3, as the CPU may
compute in bf16.

    python tests/benchmarks/startup.py
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tyro

from img2prompt import cli

ROOT = Path(__file__).parents[2]
MODES = {"in process": "", "through Ray": "local"}
"""Values of RAY_ADDRESS."""

TIMED = """
import contextlib, json, os, runpy, sys, time

marks = {"began": time.time()}
from img2prompt.distributed import placement

connected = placement.connected

@contextlib.contextmanager
def timed(*arguments, **options):
    marks["imported"] = time.time()
    with connected(*arguments, **options):
        marks["connected"] = time.time()
        yield
        marks["worked"] = time.time()

placement.connected = timed
path, sys.argv = sys.argv[1], sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
with open(path, "w") as file:
    json.dump(marks | {"ended": time.time(), "ray": "ray" in sys.modules}, file)
"""
"""Runs a job and notes when its imports and checks, Ray's start and its work had ended."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Size of the data."""

    prompts: int = 500
    """Prompts of the drawn scenes, with two pictures each."""
    pictures: int = 8
    """Pictures to predict."""


def environment(address: str) -> dict[str, str]:
    """Environment of a job that gets RAY_ADDRESS, and nothing else of a running cluster."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "IMG2PROMPT_"))}
    return variables | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}


def run_command(command: list[str], address: str) -> None:
    """Run a command that gets RAY_ADDRESS; raise AssertionError with its output if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment(address), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def prepare(options: Options, out: Path) -> Path:
    """Make shards and features, and a folder of pictures, which is returned."""
    prepared = ("prepare", "--sources.0.prompts", str(options.prompts))
    for name, *arguments in (prepared, ("features",), ("train", "probe-demo")):
        command = [sys.executable, f"jobs/{name}.py", *arguments, "--out", str(out)]
        run_command(command, "")
    folder = out / "pictures"
    folder.mkdir()
    table = pq.read_table(next((out / "shards" / "test").glob("*.parquet")))
    for number, data in enumerate(table["image"].to_pylist()[: options.pictures]):
        (folder / f"{number}.png").write_bytes(data)
    return folder


def jobs_of(name: str, pictures: Path) -> dict[str, list[str]]:
    """Return the arguments of each job; its result is named `name` with the job's name."""
    arguments = {
        "train": ["probe-demo", "--optim.epochs", "1"],
        "evaluate": ["--runs", "probe", "--views", "flip"],
        "predict": ["--run", "probe", "--pictures", str(pictures)],
    }
    return {job: [*own, "--name", f"{name}-{job}"] for job, own in arguments.items()}


def measure(job: str, arguments: list[str], address: str, out: Path) -> dict[str, float]:
    """Run a job and return its seconds by phase; `ray` is 1 if it imported Ray."""
    marks = out / "marks.json"
    command = [sys.executable, "-c", TIMED, str(marks), f"jobs/{job}.py", *arguments]
    command += ["--out", str(out)]
    run_command(command, address)
    return phases(json.loads(marks.read_text()))


def phases(marks: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds between the marks of a job."""
    names = {"imports": "imported", "start": "connected", "work": "worked", "end": "ended"}
    at = [marks["began"], *(marks[mark] for mark in names.values())]
    seconds = {name: at[n + 1] - at[n] for n, name in enumerate(names)}
    return seconds | {"total": at[-1] - at[0], "ray": float(marks["ray"])}


def training_seconds(run: Path) -> float:
    """Return the seconds of the steps of a run's only epoch."""
    (row,) = json.loads((run / "history.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = (
        max(line.get("step", 0) for line in lines)
        * json.loads((run / "config.json").read_text())["optim"]["batch_size"]
    )
    return rows / row["rows_per_second"]


def check_same(out: Path, names: Mapping[str, str]) -> None:
    """Raise AssertionError if the results of the two modes differ."""
    runs = [out / "runs" / f"{name}-train" for name in names.values()]
    here, through = (run / "history.json" for run in runs)
    scores = [json.loads(path.read_text())[0]["val_cosine"] for path in (here, through)]
    np.testing.assert_allclose(*scores, atol=1e-6)
    evaluations = [out / f"{name}-evaluate" for name in names.values()]
    tables = [pq.read_table(folder / "scores.parquet")["probe"] for folder in evaluations]
    np.testing.assert_allclose(tables[0].to_numpy(), tables[1].to_numpy(), atol=1e-3)


def run(options: Options) -> dict[tuple[str, str], dict[str, float]]:
    """Measure and print; return the seconds by job and mode."""
    measured: dict[tuple[str, str], dict[str, float]] = {}
    names = {mode: mode.replace(" ", "-") for mode in MODES}
    out = Path(tempfile.mkdtemp())
    try:
        pictures = prepare(options, out)
        for mode, address in MODES.items():
            for job, arguments in jobs_of(names[mode], pictures).items():
                measured[job, mode] = measure(job, arguments, address, out)
            steps = training_seconds(out / "runs" / f"{names[mode]}-train")
            measured["train", mode]["steps"] = steps
        check_same(out, names)
    finally:
        shutil.rmtree(out)
    show(measured, options)
    return measured


def show(measured: Mapping[tuple[str, str], Mapping[str, float]], options: Options) -> None:
    rows: list[list[Any]] = []
    for (job, mode), seconds in measured.items():
        columns = ("imports", "start", "work", "steps", "end", "total")
        ratio = seconds["total"] / measured[job, "in process"]["total"]
        cells = [f"{seconds[name]:.1f}" if name in seconds else "" for name in columns]
        rows.append([f"{job}, {mode}", *cells, f"{ratio:.1f}"])
    cli.show(
        f"seconds of small jobs on {options.prompts} prompts",
        ["", "imports", "Ray's start", "work", "of it steps", "end", "total", "times as long"],
        sorted(rows),
    )


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
