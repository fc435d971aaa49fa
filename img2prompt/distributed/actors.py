"""Model actors on Ray Data: pictures in, columns of predictions out.

Features, evaluation and prediction share this. Bytes and uint8 pixels travel between tasks; floats
are made on the model's device. Reading and decoding run in plain tasks on CPUs. The model runs in a
pool of actors with one GPU each, or about one CPU each where there is no GPU. While an actor's
model works on one batch, the next batch is unpacked and sent to its device. Every row carries the
seconds of its reading, decoding and forward pass, so that a stage can report its bottleneck.
"""

import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from torch import Tensor

from img2prompt.artifact import Artifact
from img2prompt.data import images
from img2prompt.data.shards import read_rows
from img2prompt.distributed import cluster
from img2prompt.distributed.progress import StepTimes

DECODE_CPUS, MODEL_CPUS = 0.5, 0.75
"""CPUs of a decoding task, and of a model's actor where there is no GPU. They differ, so that Ray
never fuses the two: the plan on CPUs is then the plan on GPUs. Actors that restart on fewer nodes
than they were counted for leave room for decoding; without it they would wait without end."""

TASK_BYTES = 96 << 20
"""Decoded pixels of one reading task; Ray Data cuts what exceeds 128 MiB into odd pieces."""

STEP_COLUMNS = ("read_s", "decode_s", "forward_s")
"""Seconds of each row in the steps of the pipeline."""

Model = Callable[[Tensor], Mapping[str, np.ndarray]]
"""From pixels uint8 (B, S, S, 3) on its device to named columns of B rows."""

ModelMaker = Callable[[torch.device], Model]
"""Loads a model onto a device, inside an actor."""


class Forward:
    """An actor that holds a model.

    Its rows get the model's columns and `forward_s`, the seconds that one row took.
    """

    def __init__(self, make_model: ModelMaker, actors: int, size: int) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // actors))
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


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Actors that run one model over pictures."""

    make_model: ModelMaker
    batch_size: int
    workers: int = 0
    """Actors; 0: one per GPU, or half of the CPUs where there is no GPU."""

    def actors(self, rows: int) -> int:
        """Return the number of actors for so many rows.

        Raises UserError when the cluster cannot hold the configured number.
        """
        return min(actor_count(self.workers), max(1, math.ceil(rows / self.batch_size)))

    def forward(self, data: ray.data.Dataset, rows: int) -> ray.data.Dataset:
        """Replace the column `pixels` of `rows` rows by the model's columns and `forward_s`."""
        actors, gpus = self.actors(rows), cluster.resources().gpus
        return data.map_batches(
            Forward,
            fn_constructor_args=(self.make_model, actors, self.batch_size),
            batch_size=self.batch_size,
            compute=ray.data.ActorPoolStrategy(
                size=actors, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
            ),
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus else MODEL_CPUS,
        )

    def times(self, stage: str, rows: int) -> StepTimes:
        """Return the step times of a run over so many rows, to which each row's are added."""
        actors, available = self.actors(rows), cluster.resources()
        reading = max(1, int(available.cpus - (0 if available.gpus else actors)))
        return StepTimes(stage, {"read": reading, "decode": reading, "forward": actors, "write": 1})


def actor_count(workers: int) -> int:
    """Return the configured number of actors, else one per GPU, or half of the CPUs without GPUs.

    Raises:
        UserError: the cluster cannot hold so many; Ray would wait for room without end.
    """
    available = cluster.resources()
    actors = workers or int(available.gpus) or max(1, int(available.cpus) // 2)
    reading = 1  # CPU beside those of the actors
    cluster.require(gpus=actors) if available.gpus else cluster.require(cpus=actors + reading)
    return actors


def forward_shards(
    shards: Artifact, names: Sequence[str], pool: Pool, times: StepTimes
) -> Iterator[tuple[str, pa.Table]]:
    """Yield each file's name and rows, in its row order, as soon as all its rows are done.

    The rows have `id` and the model's columns. Files finish in any order. Only the rows of
    unfinished files are held. The seconds that the steps took are added to `times`.
    """
    count = sum(shards.files[name].rows for name in names)
    if not count:
        return
    # Enough tasks for all actors, each with at least a batch.
    at_most = max(pool.batch_size, math.ceil(count / pool.actors(count)))
    tasks = [task for name in names for task in _reading_tasks(shards, name, at_most)]
    rows = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    read = functools.partial(_read, shards)
    rows = rows.map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=DECODE_CPUS)
    outputs = pool.forward(rows, count)
    waiting: dict[str, list[pa.Table]] = {}
    for batch in outputs.iter_batches(batch_size=None, batch_format="pyarrow"):
        table = cast(pa.Table, batch)
        times.add_columns(table)
        for name in table["name"].unique().to_pylist():
            parts = waiting.setdefault(name, [])
            parts.append(table.filter(pc.field("name") == name))
            if sum(part.num_rows for part in parts) == shards.files[name].rows:
                complete = pa.concat_tables(waiting.pop(name)).sort_by("row")
                yield name, complete.drop_columns(["name", "row", *STEP_COLUMNS])


def _reading_tasks(shards: Artifact, name: str, at_most: int) -> list[dict[str, Any]]:
    """Cut a file into reading tasks: rows `start` to before `stop`, by whole row groups."""
    in_group, rows = shards.config["rows_per_group"], shards.files[name].rows
    at_most = min(at_most, TASK_BYTES // (3 * shards.config["size"] ** 2))
    step = in_group * max(1, at_most // in_group)
    return [
        {"name": name, "start": start, "stop": min(start + step, rows)}
        for start in range(0, rows, step)
    ]


def _read(shards: Artifact, task: Any) -> Any:
    """Read a task, a table of one row: pixels (N, S, S, 3), ids and row numbers of its rows."""
    began = time.perf_counter()
    name, start, stop = (task[key][0].as_py() for key in ("name", "start", "stop"))
    table = read_rows(shards.path(name), start, stop, ["id", "image"])
    read = time.perf_counter()
    pixels = np.stack([images.decode(data.as_py()) for data in table["image"]])
    rows, decoded = len(pixels), time.perf_counter()
    return {
        "name": np.full(rows, name),
        "id": np.array(table["id"].to_pylist()),
        "row": np.arange(start, stop),
        "pixels": pixels,
        "read_s": np.full(rows, (read - began) / rows),
        "decode_s": np.full(rows, (decoded - read) / rows),
    }


def to_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of equal-length vectors, in any of Ray Data's encodings, as (N, D)."""
    array = column.combine_chunks()
    if hasattr(array, "to_numpy_ndarray"):
        return array.to_numpy_ndarray()
    return np.stack(array.to_numpy(zero_copy_only=False)) if len(array) else np.empty((0, 0))


def forward_split(shards: Artifact, split: str, pool: Pool) -> pa.Table:
    """Return `id` and the model's columns for all rows of a split, in the order of the shards."""
    names = [name for name in shards.names(f"{split}/") if shards.files[name].rows]
    times = pool.times(f"forward {split}", sum(shards.files[name].rows for name in names))
    tables = dict(forward_shards(shards, names, pool, times))
    times.log()
    return pa.concat_tables([tables[name] for name in names])
