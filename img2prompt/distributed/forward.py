"""A model over pictures: reading, decoding and forward passes, in this process or in an actor.

Ray Data runs these parts in tasks and actors (`actors.py`); `forward_in_process` runs them here,
with threads that decode. Nothing here imports Ray.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from img2prompt.artifact import Artifact
from img2prompt.data import images
from img2prompt.data.ahead import map_ahead
from img2prompt.data.shards import read_rows
from img2prompt.data.vectors import vector_column
from img2prompt.distributed.placement import usable_cores
from img2prompt.distributed.progress import StepTimes

STEP_COLUMNS = ("read_s", "decode_s", "forward_s")
"""Seconds of each row in the steps of the pipeline."""

DECODERS = 16
"""Most threads that decode in this process."""

Model = Callable[[Tensor], Mapping[str, np.ndarray]]
"""From pixels uint8 (B, S, S, 3) on its device to named columns of B rows."""

ModelMaker = Callable[[torch.device], Model]
"""Loads a model onto a device, inside an actor or this process."""

T = TypeVar("T")


class Forward:
    """A model that is loaded, in an actor or in this process.

    Its rows get the model's columns and `forward_s`, the seconds that one row took.
    """

    def __init__(self, make_model: ModelMaker, size: int, sharing: int = 0) -> None:
        """`size`: most rows of a batch. `sharing`: actors that divide a machine's cores among them;
        0: torch computes with as many threads as it already has.
        """
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu" and sharing:
            torch.set_num_threads(max(1, usable_cores() // sharing))
        self._model = make_model(self._device)
        self._size = size
        self._turn = threading.Lock()

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pixels = batch.pop("pixels")
        rows, sent = len(pixels), self._send(pixels)
        with self._turn:
            began = time.perf_counter()
            columns = {name: column[:rows] for name, column in self._model(sent).items()}
            seconds = time.perf_counter() - began
        return {**batch, **columns, "forward_s": np.full(rows, seconds / rows)}

    def _send(self, pixels: np.ndarray) -> Tensor:
        """Send pixels to the device; on a GPU filled up to one shape, for compiled models."""
        if self._device.type == "cpu":
            return torch.tensor(pixels)
        pinned = torch.zeros((self._size, *pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
        pinned[: len(pixels)] = torch.as_tensor(pixels)
        return pinned.to(self._device, non_blocking=True)


@dataclass(frozen=True)
class ReadingTask:
    """Rows `start` to before `stop` of a file of shards."""

    name: str
    start: int
    stop: int


def reading_tasks(shards: Artifact, name: str, rows_at_once: int) -> list[ReadingTask]:
    """Cut a file into tasks of about `rows_at_once` rows, by whole row groups."""
    in_group, rows = shards.config["rows_per_group"], shards.files[name].rows
    step = in_group * max(1, rows_at_once // in_group)
    return [ReadingTask(name, start, min(start + step, rows)) for start in range(0, rows, step)]


def read_task(shards: Artifact, task: ReadingTask) -> dict[str, Any]:
    """Read and decode the rows of a task: pixels (N, S, S, 3), ids and row numbers."""
    began = time.perf_counter()
    table = read_rows(shards.path(task.name), task.start, task.stop, ["id", "image"])
    read = time.perf_counter()
    pixels = np.stack([images.decode(data.as_py()) for data in table["image"]])
    rows, decoded = len(pixels), time.perf_counter()
    return {
        "name": np.full(rows, task.name),
        "id": np.array(table["id"].to_pylist()),
        "row": np.arange(task.start, task.stop),
        "pixels": pixels,
        "read_s": np.full(rows, (read - began) / rows),
        "decode_s": np.full(rows, (decoded - read) / rows),
    }


def forward_in_process(
    make_model: ModelMaker,
    load: Callable[[T], dict[str, Any]],
    tasks: Sequence[T],
    batch_size: int,
) -> Iterator[pa.Table]:
    """Yield rows with the columns of `load`, without `pixels`, and the model's, in order.

    `load` is called in threads, a few tasks ahead, and returns columns of equally many rows.
    """
    if not tasks:
        return
    model = Forward(make_model, batch_size)
    for columns in map_ahead(load, tasks, _decoder_threads()):
        for start in range(0, len(columns["pixels"]), batch_size):
            batch = {name: rows[start : start + batch_size] for name, rows in columns.items()}
            yield _table(model(batch))


def forward_split_in_process(
    shards: Artifact, split: str, make_model: ModelMaker, batch_size: int
) -> pa.Table:
    """Return `id` and the model's columns for all rows of a split, in the order of the shards."""
    names = [name for name in shards.names(f"{split}/") if shards.files[name].rows]
    tasks = [task for name in names for task in reading_tasks(shards, name, batch_size)]
    slots = {"read": _decoder_threads(), "decode": _decoder_threads(), "forward": 1}
    times, tables = StepTimes(f"forward {split} in this process", slots), []
    for table in forward_in_process(
        make_model, lambda task: read_task(shards, task), tasks, batch_size
    ):
        times.add_columns(table)
        tables.append(table.drop_columns(["name", "row", *STEP_COLUMNS]))
    times.log()
    return pa.concat_tables(tables)


def _decoder_threads() -> int:
    """Return how many threads decode in this process: one for each core, at most DECODERS."""
    return min(DECODERS, usable_cores())


def _table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    """Return columns (N,) and (N, D) as a table; (N, D) become vectors."""
    return pa.table(
        {
            name: vector_column(rows, rows.dtype) if rows.ndim == 2 else pa.array(rows)
            for name, rows in columns.items()
        }
    )
