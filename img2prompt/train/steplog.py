"""Metrics of a run by step: metrics.jsonl, TensorBoard files, and MLflow if configured.

A line has the mean loss since the previous line, and the time of a step by phase. The GPU is not
synchronised: work that the optimiser's step leaves running counts for the next forward pass.
"""

import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tensorboardX import SummaryWriter

from img2prompt.lease import KEEPER
from img2prompt.storage import delete_file, exists, join, read_bytes, write_bytes
from img2prompt.train.mlflow_copy import MlflowCopy

LINES = "metrics.jsonl"
"""The first file of lines; the next ones are metrics-0001.jsonl and so on."""
LINES_IN_FILE = 200
"""A file is written anew for each of its lines: object stores cannot append."""
BOARD = "tensorboard"
BOARD_BYTES = 256 << 10
"""Size from which on TensorBoard's events go to another file, for the same reason."""
SECONDS = 15.0
"""Seconds between two lines."""

PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""16-bit FLOP/s of dense matrix products, from NVIDIA's data sheets; V100 and T4 in float16."""


def peak_of(device: torch.device) -> float:
    """Return the peak FLOP/s of a device, 0 if unknown."""
    if device.type != "cuda":
        return 0.0
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((peak for name, peak in PEAKS.items() if name in words), 0.0)


class StepLog:
    """Collects times and losses of this worker; that of the first worker writes them too."""

    def __init__(
        self,
        out: str = "",
        name: str = "",
        *,
        step: int = 0,
        workers: int = 1,
        flop: float = 0.0,
        device: torch.device | None = None,
        mlflow: str = "",
        settings: Mapping[str, Any] | None = None,
        observe: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Open the log.

        `out` is the run's folder, empty to write nothing; `step` the number of steps done; `flop`
        the forward and backward FLOP of one row; `settings` the parameters of the MLflow run;
        `observe` gets each line that is written.
        """
        self._out = out
        self._workers = workers
        self._flop = flop
        self._peak = peak_of(device) if device else 0.0
        self._lines = _LineFiles(out, step) if out else None
        self._hours = self._lines.worker_hours if self._lines else 0.0
        self._board = _Board(out, step) if out else None
        self._mlflow = MlflowCopy(mlflow, name, settings or {}) if out and mlflow else None
        self._observe = observe
        self._restart()

    def _restart(self) -> None:
        self._began = time.perf_counter()
        self._times = {"data": 0.0, "compute": 0.0, "step": 0.0}
        self._sums = [0.0, 0, 0]  # loss, rows, steps
        self._part_sums: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time of the block as `data`, `compute` (forward and backward) or `step`."""
        began = time.perf_counter()
        yield
        self._times[phase] += time.perf_counter() - began

    def add(
        self, loss: float, rows: int, parts: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Count a step: this worker's mean loss, its rows, and the loss's parts by name."""
        for number, value in enumerate((loss * rows, rows, 1)):
            self._sums[number] += value
        for name, value in parts.items():
            self._part_sums[name] = self._part_sums.get(name, 0.0) + value * rows

    @property
    def is_due(self) -> bool:
        return time.perf_counter() - self._began > SECONDS

    def line(self, **facts: Any) -> dict[str, Any]:
        """Write a line about the steps since the previous one, and return it; `facts` come first.

        Times are seconds per step. `images_per_s` is the rate of all workers, `worker_hours`
        (GPU-hours on GPUs) the total of the run so far, `mfu` the share of the device's peak FLOP/s
        (null if unknown). The parts of the loss have columns `loss/NAME`.
        """
        loss, rows, steps = self._sums
        seconds = time.perf_counter() - self._began
        self._hours += self._workers * seconds / 3600
        rate = rows / seconds
        line = dict(facts)
        line["loss"] = loss / rows if rows else None
        line |= {f"loss/{name}": total / rows for name, total in self._part_sums.items()}
        line |= {f"{name}_s": spent / max(steps, 1) for name, spent in self._times.items()}
        line |= {"images_per_s": rate * self._workers, "worker_hours": self._hours}
        line["mfu"] = rate * self._flop / self._peak if self._peak else None
        self._write(line)
        self._restart()
        return line

    def epoch(self, row: dict[str, Any], step: int) -> None:
        """Write a line for the end of an epoch; `row` is its row of the history."""
        self._hours += self._workers * (time.perf_counter() - self._began) / 3600
        self._write({"step": step, **row, "worker_hours": self._hours})
        self._restart()

    def _write(self, line: dict[str, Any]) -> None:
        if self._lines is None or self._board is None:
            return
        KEEPER.require(self._out)
        self._lines.add(line)
        numbers = {n: v for n, v in line.items() if isinstance(v, int | float) and n != "step"}
        self._board.write(numbers, line["step"])
        if self._mlflow is not None:
            self._mlflow.add(numbers, line["step"])
        if self._observe is not None:
            self._observe(line)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._mlflow is not None:
            self._mlflow.close()


def _line_file(out: str, number: int) -> str:
    stem, ending = LINES.split(".")
    return join(out, f"{stem}-{number:04d}.{ending}" if number else LINES)


def _files_of(out: str) -> list[list[dict[str, Any]]]:
    """Return the lines of each file of the run in a folder."""
    files = itertools.takewhile(exists, (_line_file(out, number) for number in itertools.count()))
    return [[json.loads(line) for line in read_bytes(file).splitlines()] for file in files]


def _lines_of(out: str) -> list[dict[str, Any]]:
    """Return all lines of the run in a folder."""
    return list(itertools.chain.from_iterable(_files_of(out)))


def worker_seconds(out: str) -> float:
    """Return the seconds that a run's workers spent in their loops, summed over workers."""
    lines = _lines_of(out)
    return 3600 * lines[-1]["worker_hours"] if lines else 0.0


def epochs_and_seconds(out: str) -> tuple[int, float]:
    """Return the complete epochs of the run in this folder, and their worker-seconds."""
    ends = [line for line in _lines_of(out) if "val_cosine" in line]
    return len(ends), 3600 * ends[-1]["worker_hours"] if ends else 0.0


class _LineFiles:
    """The files of lines of a run that goes on after `step` steps.

    Lines of an earlier process are kept, but for those of steps that will be repeated.
    """

    def __init__(self, out: str, step: int) -> None:
        self._out = out
        files = _files_of(out)
        kept = [[line for line in lines if line["step"] <= step] for lines in files]
        while len(kept) > 1 and not kept[-1]:
            kept.pop()
        for number in range(max(len(kept), 1), len(files)):
            delete_file(_line_file(out, number))
        self._number = max(len(kept) - 1, 0)
        self._lines = kept[-1] if kept else []
        self.worker_hours = self._lines[-1]["worker_hours"] if self._lines else 0.0

    def add(self, line: dict[str, Any]) -> None:
        if len(self._lines) >= LINES_IN_FILE:
            self._number, self._lines = self._number + 1, []
        self._lines.append(line)
        text = "".join(json.dumps(row) + "\n" for row in self._lines)
        write_bytes(_line_file(self._out, self._number), text.encode())


class _Board:
    """TensorBoard's event files, written to a local folder and copied to any filesystem."""

    def __init__(self, out: str, step: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._out = join(out, BOARD)
        self._files = 0
        self._writer = self._next_writer(purge_step=step + 1 if step else None)

    def _next_writer(self, purge_step: int | None = None) -> SummaryWriter:
        """Begin a file; TensorBoard reads those of a folder in the order of their names."""
        self._files += 1
        suffix = f".{self._files:04d}"
        return SummaryWriter(self._folder.name, purge_step=purge_step, filename_suffix=suffix)

    def write(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        if self._copy() > BOARD_BYTES:
            self._end_file()
            self._writer = self._next_writer()

    def _copy(self) -> int:
        """Copy the newest file, and return its size."""
        (path,) = Path(self._folder.name).glob(f"events*.{self._files:04d}")
        data = path.read_bytes()
        write_bytes(join(self._out, path.name), data)
        return len(data)

    def _end_file(self) -> None:
        self._writer.close()
        self._copy()  # the writer's thread may not have written everything at a flush

    def close(self) -> None:
        self._end_file()
        self._folder.cleanup()
