"""What the benchmarks of training share: a tower, shards, and one run made in several ways.

A run is made by the stage, or by a bare loop: the same model, rows, order and precision on tensors
that already lie in memory, in as many processes with as many threads. Its step is plain torch
(AdamW, DistributedDataParallel over gloo), or one of the engines of the package without all that
is around them.
"""

import contextlib
import csv
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from img2prompt.artifact import Artifact, Draft
from img2prompt.config import ShardConfig, TowerConfig, TrainConfig
from img2prompt.data import images
from img2prompt.data.order import epoch_order, steps_per_epoch, worker_rows
from img2prompt.data.shards import SCHEMA, ShardRows
from img2prompt.data.vectors import DIMENSIONS, vector_column
from img2prompt.model.loss import cosine_loss, cosines
from img2prompt.model.optim import build_optimizer, build_schedule
from img2prompt.model.predictor import Predictor, build_predictor, open_tower
from img2prompt.model.tower import fresh_tower, save_tower
from img2prompt.stages.batches import Place
from img2prompt.stages.engine import build_engine, compute_dtype

REAL = Path(__file__).parents[3] / "shared" / "data"
CPU = torch.device("cpu")
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Material:
    """A tower with random weights, heavy enough to be the limit, and pictures for it."""

    rows: int
    size: int
    """Side of the pictures in pixels."""
    layers: int
    width: int
    patch: int = 16
    val_rows: int = 16
    distinct: int = 128
    """Pictures, which the rows repeat."""
    pictures: Path = REAL
    """Folder of pictures.csv; noise when there is none."""


Samples = list[tuple[Path, str]]
"""Picture files and their prompts."""


def samples(material: Material, folder: Path) -> Samples:
    """Real pictures with their prompts; else noise, which is written to `folder`."""
    table = material.pictures / "pictures.csv"
    if table.exists():
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))[: material.distinct]
        return [(material.pictures / row["file"], row["prompt"]) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    rng, found = np.random.default_rng(0), []
    for number in range(min(16, material.distinct)):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (512, 512, 3), np.uint8)).save(path)
        found.append((path, f"a picture of noise with the number {number}, {number**2} colours"))
    return found


def write_tower(material: Material, folder: Path) -> TowerConfig:
    shape = {
        "hidden_size": material.width,
        "intermediate_size": 4 * material.width,
        "num_hidden_layers": material.layers,
        "num_attention_heads": max(1, material.width // 64),
        "image_size": material.size,
        "patch_size": material.patch,
    }
    save_tower(fresh_tower(shape, seed=0), folder)
    return TowerConfig(weights=str(folder))


def write_shards(
    material: Material, found: Samples, folder: Path, targets: np.ndarray | None = None
) -> Artifact:
    """Shards of the samples, over and over; `targets` (samples, 384), or random ones."""
    config = ShardConfig(size=material.size)
    draft = Draft.open(str(folder), "shards", config, {})
    pictures = [images.decode(path.read_bytes()) for path, _ in found]
    files = [images.encode(images.resize(p, config.size, config.fit), "png") for p in pictures]
    if targets is None:
        targets = np.random.default_rng(1).normal(size=(len(files), DIMENSIONS))
    for split, count in (("train", material.rows), ("val", material.val_rows)):
        for number, start in enumerate(range(0, count, config.rows_per_shard)):
            rows = np.arange(start, min(start + config.rows_per_shard, count))
            ids, sample = [f"{split}-{row:07d}" for row in rows], rows % len(files)
            data = [files[row] for row in sample]
            columns = [ids, ids, ids, data, vector_column(targets[sample])]
            table = pa.table(columns, schema=SCHEMA)
            draft.write_table(f"{split}/{number:05d}.parquet", table, config.rows_per_group)
    return draft.publish(train=material.rows, val=material.val_rows)


@dataclass(frozen=True)
class Trained:
    """What came out of one epoch."""

    rate: float
    """Pictures a second of all workers, after the first steps."""
    loss: float
    """Mean of the training rows."""
    val_cosine: float
    peak: float = 0.0
    """Most memory of a worker while it trains, MiB; 0: not measured."""
    whole: float = 0.0
    """Pictures a second from before the start to after the end; 0: not measured."""


def check_same(found: Trained, expected: Trained, tolerance: float, what: str) -> None:
    """Refuse (AssertionError) a run with another loss, or whose weights end elsewhere."""
    for name in ("loss", "val_cosine"):
        apart = abs(getattr(found, name) - getattr(expected, name))
        assert apart <= tolerance, f"{what}: {name} is {apart:.2g} apart"


class Stepper(Protocol):
    """What makes a step: an engine of the package, or `Bare`."""

    def forward(self, inputs: Tensor) -> Tensor: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self) -> None: ...


class Bare:
    """torch alone."""

    def __init__(self, model: nn.Module, config: TrainConfig, steps: int, workers: int) -> None:
        self._model = DistributedDataParallel(model) if workers > 1 else model
        self._learning = [tensor for tensor in model.parameters() if tensor.requires_grad]
        self._optimizer = build_optimizer(model, config.optim)
        self._schedule = build_schedule(self._optimizer, config.optim, steps)
        self._clip = config.optim.clip_norm
        self._dtype = compute_dtype(config.engine.precision, CPU)

    def forward(self, inputs: Tensor) -> Tensor:
        half = self._dtype != torch.float32
        with torch.autocast("cpu", self._dtype) if half else contextlib.nullcontext():
            return self._model(inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._learning, self._clip)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()


def by_bare_loop(
    config: TrainConfig, shards: Artifact, workers: int, warmup: int, *, bare: bool = True
) -> Trained:
    """The same epoch from memory, in as many processes as the stage has workers.

    `warmup` steps are not counted. Not `bare`: the step is made by the engine of the config.
    """
    found = in_processes(_train, workers, config, shards, warmup, bare)
    losses = np.mean([each.loss for each in found])
    peak = max(each.peak for each in found)
    return Trained(found[0].rate, float(losses), found[0].val_cosine, peak)


def _train(place: Place, config: TrainConfig, shards: Artifact, warmup: int, bare: bool) -> Trained:
    model = model_of(config)
    batches = _batches(config, ShardRows(shards, "train"), place)
    made: Stepper = (
        Bare(model, config, len(batches), place.workers)
        if bare
        else build_engine(model, config, len(batches), CPU)
    )
    model.train()
    losses, began = [], 0.0
    forget_peak()
    for step, (pixels, targets) in enumerate(batches):
        if step == warmup:
            dist.barrier()
            began = time.perf_counter()
        loss = cosine_loss(made.forward(pixels), targets)
        made.backward(loss)
        made.step()
        losses.append(loss.item())
    dist.barrier()
    rows = (len(batches) - warmup) * config.optim.batch_size
    rate, peak = rows / (time.perf_counter() - began), peak_memory()
    return Trained(rate, float(np.mean(losses)), _validate(model, made, shards), peak)


def model_of(config: TrainConfig) -> Predictor:
    tower = open_tower(config.tower)
    return build_predictor(tower, tower.width, config.plan, config.head, config.seed)


def _batches(config: TrainConfig, rows: ShardRows, place: Place) -> list[tuple[Tensor, Tensor]]:
    """This worker's share of all batches of the first epoch."""
    order, size = epoch_order(rows.group_sizes, config.seed, 0), config.optim.batch_size
    found = []
    for step in range(steps_per_epoch(len(rows), size)):
        batch = rows.fetch(worker_rows(order, step, size, place.rank, place.workers))
        found.append((torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)))
    return found


@torch.no_grad()
def _validate(model: nn.Module, made: Stepper, shards: Artifact) -> float:
    model.eval()
    rows = ShardRows(shards, "val")
    batch = rows.fetch(np.arange(len(rows)))
    predicted = made.forward(torch.from_numpy(batch.inputs))
    return cosines(predicted, torch.from_numpy(batch.targets)).mean().item()


def in_processes(work: Callable[..., Any], workers: int, *arguments: Any) -> list[Any]:
    """What `work(place, *arguments)` returns in each of so many processes of one gloo group.

    They share the cores evenly.
    """
    start = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(workers, start) as executor:
        places = [Place(rank, workers) for rank in range(workers)]
        meet = f"file://{folder}/meet"
        runs = [executor.submit(_member, work, place, meet, arguments) for place in places]
        return [run.result() for run in runs]


def _member(work: Callable[..., Any], place: Place, meet: str, arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.workers))
    os.environ["LOCAL_RANK"] = str(place.rank)
    dist.init_process_group(
        "gloo",
        init_method=meet,
        rank=place.rank,
        world_size=place.workers,
        timeout=timedelta(minutes=3),
    )
    return work(place, *arguments)


def forget_peak() -> None:
    """Let the largest memory of this process begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / MIB
