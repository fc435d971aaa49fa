"""A bare training loop, the reference of the training benchmarks.

It has the stage's model, rows, order and precision, on tensors that are already in memory, in as
many processes with as many threads. Its step is plain torch (AdamW, DistributedDataParallel over
gloo), or one of the package's engines without the stage around it.
"""

import contextlib
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
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from img2prompt.artifact import Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.data.order import epoch_batches, worker_share
from img2prompt.data.shards import ShardRows
from img2prompt.model.loss import cosine_loss, cosines
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import PromptModel, build_prompt_model
from img2prompt.model.towers.build import open_tower
from img2prompt.train.batches import WorkerRank
from img2prompt.train.engines.build import build_engine
from img2prompt.train.optim import build_optimizer, build_schedule

CPU = torch.device("cpu")
MIB = 1 << 20


@dataclass(frozen=True)
class Trained:
    """Measurements of one epoch."""

    rate: float
    """Pictures a second of all workers, after the first steps."""
    loss: float
    """Mean loss of the training rows."""
    val_cosine: float
    peak: float = 0.0
    """Peak memory of a worker while it trains, in MiB; 0: not measured."""
    whole: float = 0.0
    """Pictures a second from before the start to after the end; 0: not measured."""


def check_same(trained: Trained, expected: Trained, tolerance: float, run: str) -> None:
    """Raise AssertionError for a run with another loss or validation cosine."""
    for name in ("loss", "val_cosine"):
        apart = abs(getattr(trained, name) - getattr(expected, name))
        assert apart <= tolerance, f"{run}: {name} is {apart:.2g} apart"


class Stepper(Protocol):
    """One training step: an engine of the package, or `Bare`."""

    def forward(self, inputs: Tensor) -> Tensor: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self) -> None: ...


class Bare:
    """Training steps by torch alone."""

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
    """Train the epoch from memory, in as many processes as the stage has workers.

    `warmup` steps are not counted. Without `bare`, the config's engine makes the step.
    """
    results = in_processes(_train, workers, config, shards, warmup, bare)
    losses = np.mean([each.loss for each in results])
    peak = max(each.peak for each in results)
    return Trained(results[0].rate, float(losses), results[0].val_cosine, peak)


def _train(
    rank: WorkerRank, config: TrainConfig, shards: Artifact, warmup: int, bare: bool
) -> Trained:
    model = model_of(config)
    batches = _batches(config, ShardRows(shards, "train"), rank)
    stepper: Stepper = (
        Bare(model, config, len(batches), rank.workers)
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
        loss = cosine_loss(stepper.forward(pixels), targets)
        stepper.backward(loss)
        stepper.step()
        losses.append(loss.item())
    dist.barrier()
    rows = (len(batches) - warmup) * config.optim.batch_size
    rate, peak = rows / (time.perf_counter() - began), peak_memory()
    return Trained(rate, float(np.mean(losses)), _validate(model, stepper, shards), peak)


def model_of(config: TrainConfig) -> PromptModel:
    tower = open_tower(config.tower)
    return build_prompt_model(tower, tower.shape.width, config.plan, config.head, config.seed)


def _batches(config: TrainConfig, rows: ShardRows, rank: WorkerRank) -> list[tuple[Tensor, Tensor]]:
    """Return this worker's share of all batches of the first epoch."""
    batches = []
    for numbers in epoch_batches(rows.group_sizes, config.seed, 0, config.optim.batch_size):
        batch = rows.fetch(worker_share(numbers, rank.rank, rank.workers))
        batches.append((torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)))
    return batches


@torch.no_grad()
def _validate(model: nn.Module, stepper: Stepper, shards: Artifact) -> float:
    model.eval()
    rows = ShardRows(shards, "val")
    batch = rows.fetch(np.arange(len(rows)))
    predicted = stepper.forward(torch.from_numpy(batch.inputs))
    return cosines(predicted, torch.from_numpy(batch.targets)).mean().item()


def in_processes(work: Callable[..., Any], workers: int, *arguments: Any) -> list[Any]:
    """Run `work(rank, *arguments)` in `workers` processes of one gloo group; return their results.

    The processes share the cores evenly.
    """
    start = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(workers, start) as executor:
        ranks = [WorkerRank(rank, workers) for rank in range(workers)]
        meet = f"file://{folder}/meet"
        runs = [executor.submit(_member, work, rank, meet, arguments) for rank in ranks]
        return [run.result() for run in runs]


def _member(
    work: Callable[..., Any], rank: WorkerRank, meet: str, arguments: tuple[Any, ...]
) -> Any:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // rank.workers))
    os.environ["LOCAL_RANK"] = str(rank.rank)
    dist.init_process_group(
        "gloo",
        init_method=meet,
        rank=rank.rank,
        world_size=rank.workers,
        timeout=timedelta(minutes=3),
    )
    return work(rank, *arguments)


def forget_peak() -> None:
    """Reset the peak memory of this process (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Return the peak memory of this process in MiB (Linux)."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / MIB
