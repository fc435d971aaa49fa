"""Pictures through model actors with Ray Data: what features, evaluate and predict share.

Bytes and uint8 travel between tasks, floats are made on the model's device. Reading and decoding
run in plain tasks on CPUs, the model in a pool of actors with one GPU each, or about one CPU where
there is none. While an actor's model works on one batch, the next one is unpacked and sent to its
device. Every row carries what its reading, decoding and forward pass took, so that a stage can tell
where its time goes.
"""

import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from torch import Tensor, nn

from img2prompt.artifact import Artifact
from img2prompt.data import images
from img2prompt.data.shards import read_rows
from img2prompt.distributed import cluster
from img2prompt.distributed.progress import StepTimes
from img2prompt.model.precision import compute_dtype

DECODE_CPUS, MODEL_CPUS = 0.5, 0.75
"""Of a decoding task, and of a model's actor where there is no GPU. They differ, so that Ray never
fuses the two: the plan on CPUs is then the plan on GPUs. And actors that come back on fewer nodes
than they were counted for leave room for decoding, without which they would wait for ever."""

TASK_BYTES = 96 << 20
"""Decoded pixels of one reading task; Ray Data cuts what exceeds 128 MiB into odd pieces."""

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda pixels: pixels,
    "flip": lambda pixels: pixels.flip(2),
}
"""What a model may be shown of pixels (B, S, S, 3); `flip` swaps left and right."""

ModelMaker = Callable[[], nn.Module]


class Forward:
    """An actor that holds a model from pixels uint8 (B, S, S, 3) to floats (B, D).

    A tower runs in the type that `precision` asks for, a head always in float32.

    Its rows get `vector`, (V * D) floats for V views, and `forward_s`, the seconds of one row.
    """

    def __init__(
        self, make_model: ModelMaker, actors: int, precision: str, views: Sequence[str], size: int
    ) -> None:
        from img2prompt.model.towers.base import Tower

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // actors))
        self._model = make_model().to(self._device).eval()
        for module in self._model.modules():
            if isinstance(module, Tower):  # autocast would cast its weights again for each batch
                module.to(compute_dtype(precision, self._device))
        self._views = [VIEWS[view] for view in views]
        self._size = size
        self._turn = threading.Lock()
        if self._device.type == "cuda":
            # CLIP's QuickGELU is several memory-bound kernels unless they are fused. A machine
            # without a C compiler, which the fusing needs, goes on with the plain model.
            torch._dynamo.config.suppress_errors = True
            self._model.compile(dynamic=False)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pixels = batch.pop("pixels")
        rows, sent = len(pixels), self._send(pixels)
        with self._turn:
            began = time.perf_counter()
            seen = [self._model(view(sent))[:rows].float().cpu() for view in self._views]
            seconds = time.perf_counter() - began
        batch["vector"] = torch.cat(seen, dim=1).numpy()
        batch["forward_s"] = np.full(rows, seconds / rows)
        return batch

    def _send(self, pixels: np.ndarray) -> Tensor:
        """The pixels on the device; on a GPU filled up to one shape, that of the compiled model."""
        if self._device.type == "cpu":
            return torch.tensor(pixels)
        pinned = torch.zeros((self._size, *pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
        pinned[: len(pixels)] = torch.as_tensor(pixels)
        return pinned.to(self._device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How a model is run over pictures."""

    make_model: ModelMaker
    batch_size: int
    workers: int = 0
    """Actors; 0: one per GPU, or half of the CPUs where there is no GPU."""
    precision: str = "auto"
    views: tuple[str, ...] = ("plain",)

    def actors(self, rows: int) -> int:
        """Actors for so many rows; UserError when the cluster cannot hold those asked for."""
        return min(actor_count(self.workers), max(1, math.ceil(rows / self.batch_size)))

    def forward(self, data: ray.data.Dataset, rows: int) -> ray.data.Dataset:
        """Replace the column `pixels` of `rows` rows by `vector` and `forward_s`."""
        actors, gpus = self.actors(rows), cluster.resources().gpus
        return data.map_batches(
            Forward,
            fn_constructor_args=(
                self.make_model,
                actors,
                self.precision,
                self.views,
                self.batch_size,
            ),
            batch_size=self.batch_size,
            compute=ray.data.ActorPoolStrategy(
                size=actors, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
            ),
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus else MODEL_CPUS,
        )

    def times(self, what: str, rows: int) -> StepTimes:
        """Where the time of a run over so many rows goes."""
        actors, there = self.actors(rows), cluster.resources()
        reading = max(1, int(there.cpus - (0 if there.gpus else actors)))
        return StepTimes(what, {"read": reading, "decode": reading, "forward": actors, "write": 1})


def actor_count(workers: int) -> int:
    """Actors of a pool: as configured, else one per GPU, or half of the CPUs where there is none.

    Raises:
        UserError: the cluster cannot hold so many; Ray would wait for room without end.
    """
    there = cluster.resources()
    actors = workers or int(there.gpus) or max(1, int(there.cpus) // 2)
    reading = 1  # CPU beside those of the actors
    cluster.require(gpus=actors) if there.gpus else cluster.require(cpus=actors + reading)
    return actors


def forward_shards(
    shards: Artifact, names: Sequence[str], pool: Pool, times: StepTimes
) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Each file as soon as all its rows are done: name, ids and vectors (N, V, D) in its row order.

    Files finish in any order. Only the vectors of unfinished files are held. What the steps took is
    added to `times`.
    """
    items = [item for name in names for item in _reading(shards, name)]
    if not items:
        return
    rows = ray.data.from_items(items, override_num_blocks=len(items))
    read = functools.partial(_read, shards)
    rows = rows.map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=DECODE_CPUS)
    done = pool.forward(rows, sum(shards.files[name].rows for name in names))
    waiting: dict[str, list[pa.Table]] = {}
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
        table = cast(pa.Table, batch)
        times.add_columns(table)
        for name in table["name"].unique().to_pylist():
            parts = waiting.setdefault(name, [])
            parts.append(table.filter(pc.field("name") == name))
            if sum(part.num_rows for part in parts) == shards.files[name].rows:
                yield name, *_in_order(pa.concat_tables(waiting.pop(name)), len(pool.views))


def _reading(shards: Artifact, name: str) -> list[dict[str, Any]]:
    """What one task reads: rows `start` to before `stop` of a file, by whole row groups."""
    in_group, rows = shards.config["rows_per_group"], shards.files[name].rows
    group_bytes = in_group * 3 * shards.config["size"] ** 2
    step = in_group * max(1, TASK_BYTES // group_bytes)
    return [
        {"name": name, "start": start, "stop": min(start + step, rows)}
        for start in range(0, rows, step)
    ]


def _read(shards: Artifact, item: Any) -> Any:
    """An item (table of one row) -> pixels (N, S, S, 3) of its rows, their ids and places."""
    began = time.perf_counter()
    name, start, stop = (item[key][0].as_py() for key in ("name", "start", "stop"))
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


def _in_order(table: pa.Table, views: int) -> tuple[list[str], np.ndarray]:
    table = table.sort_by("row")
    vectors = to_matrix(table["vector"])
    return table["id"].to_pylist(), vectors.reshape(len(vectors), views, -1)


def to_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of equal-length vectors, in any of Ray Data's encodings, as (N, D)."""
    array = column.combine_chunks()
    if hasattr(array, "to_numpy_ndarray"):
        return array.to_numpy_ndarray()
    return np.stack(array.to_numpy(zero_copy_only=False)) if len(array) else np.empty((0, 0))


def forward_split(
    shards: Artifact, split: str, make_model: ModelMaker, batch_size: int
) -> tuple[list[str], np.ndarray]:
    """All rows of a split: ids and vectors (N, D), in the order of the shards."""
    names = [name for name in shards.names(f"{split}/") if shards.files[name].rows]
    pool = Pool(make_model=make_model, batch_size=batch_size)
    times = pool.times(f"forward {split}", sum(shards.files[name].rows for name in names))
    done = {n: (ids, v[:, 0]) for n, ids, v in forward_shards(shards, names, pool, times)}
    times.log()
    ids = [row_id for name in names for row_id in done[name][0]]
    return ids, np.concatenate([done[name][1] for name in names])
