"""Pictures through model actors with Ray Data: what features, evaluate and predict share.

Bytes and uint8 travel between tasks, floats are made on the model's device. Decoding runs in plain
tasks on CPUs, the model in a pool of actors with one GPU each, or one CPU where there is none.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from torch import nn

from img2prompt import runtime
from img2prompt.artifact import Artifact, open_uri
from img2prompt.data import images
from img2prompt.stages.engine import compute_dtype

DECODE_CPUS = 0.5
"""Of a decoding task. Unlike the model's, so that the two are never fused into one actor: the plan
on CPUs is then the plan on GPUs."""

ModelMaker = Callable[[], nn.Module]


class Forward:
    """An actor that holds a model from pixels uint8 (B, S, S, 3) to floats (B, D)."""

    def __init__(self, make_model: ModelMaker, actors: int, precision: str) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // actors))
        self._dtype = compute_dtype(precision, self._device)
        self._model = make_model().to(self._device).eval()

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pixels = torch.tensor(batch.pop("pixels"), device=self._device)
        half = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype, enabled=half):
            batch["vector"] = self._model(pixels).float().cpu().numpy()
        return batch


def forward(
    rows: ray.data.Dataset,
    make_model: ModelMaker,
    batch_size: int,
    workers: int = 0,
    precision: str = "auto",
) -> ray.data.Dataset:
    """Replace the column `pixels` by `vector`, the model's output.

    Raises:
        UserError: the cluster cannot hold so many actors.
    """
    actors, gpus = actor_count(workers), runtime.resources().gpus
    return rows.map_batches(
        Forward,
        fn_constructor_args=(make_model, actors, precision),
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if gpus else 0,
        num_cpus=0 if gpus else 1,
    )


def actor_count(workers: int) -> int:
    """Actors of a pool: as configured, else one per GPU, or half of the CPUs where there is none.

    Raises:
        UserError: the cluster cannot hold so many; Ray would wait for room without end.
    """
    there = runtime.resources()
    actors = workers or int(there.gpus) or max(1, int(there.cpus) // 2)
    reading = 1  # CPU beside those of the actors
    runtime.require(gpus=actors) if there.gpus else runtime.require(cpus=actors + reading)
    return actors


def forward_shards(
    shards: Artifact,
    names: list[str],
    make_model: ModelMaker,
    batch_size: int,
    workers: int = 0,
    precision: str = "auto",
) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Each file as soon as all its rows are done: name, ids and vectors (N, D) in its row order.

    Files finish in any order. Only the vectors of unfinished files are held.
    """
    if not names:
        return
    fs, _ = open_uri(shards.uri)
    by_path = {open_uri(shards.path(name))[1]: name for name in names}
    rows = ray.data.read_parquet(
        list(by_path), filesystem=fs, include_paths=True, partitioning=None
    ).select_columns(["id", "image", "path"])
    rows = rows.map_batches(_decode, batch_size=batch_size, num_cpus=DECODE_CPUS)
    waiting: dict[str, list[pa.Table]] = {}
    done = forward(rows, make_model, batch_size, workers, precision)
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
        table = cast(pa.Table, batch)
        for path in table["path"].unique().to_pylist():
            name = by_path[path]
            part = table.filter(pc.field("path") == path)
            waiting.setdefault(name, []).append(part)
            if sum(part.num_rows for part in waiting[name]) == shards.files[name].rows:
                yield name, *_in_order(shards, name, pa.concat_tables(waiting.pop(name)))


def _decode(batch: Any) -> Any:
    pixels = np.stack([images.decode(data) for data in batch.pop("image")])
    return {**batch, "pixels": pixels}


def _in_order(shards: Artifact, name: str, table: pa.Table) -> tuple[list[str], np.ndarray]:
    ids = shards.read_table(name, columns=["id"])["id"].to_pylist()
    place = {row_id: number for number, row_id in enumerate(table["id"].to_pylist())}
    vectors = to_matrix(table["vector"])
    return ids, vectors[[place[row_id] for row_id in ids]]


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
    done = {n: (ids, v) for n, ids, v in forward_shards(shards, names, make_model, batch_size)}
    ids = [row_id for name in names for row_id in done[name][0]]
    return ids, np.concatenate([done[name][1] for name in names])
