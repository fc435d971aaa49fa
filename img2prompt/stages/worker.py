"""The training loop of one worker: batches, loss, step, validation, report, resume.

The loop sees an engine and rows, never Ray or DeepSpeed; `stages/train.py` gives it both.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from img2prompt.config import TrainConfig
from img2prompt.data.order import epoch_order, steps_per_epoch, worker_rows
from img2prompt.data.shards import Batch
from img2prompt.errors import UserError
from img2prompt.model.loss import cosine_loss, cosines
from img2prompt.stages.engine import Engine

logger = logging.getLogger(__name__)

History = list[dict[str, Any]]


class Rows(Protocol):
    """Rows by number; `group_sizes` are the sizes of consecutive groups that are read together."""

    group_sizes: np.ndarray

    def __len__(self) -> int: ...
    def fetch(self, rows: np.ndarray) -> Batch: ...


@dataclass(frozen=True)
class Place:
    """Where this worker stands."""

    rank: int = 0
    workers: int = 1


def total_steps(config: TrainConfig, rows: int) -> int:
    """Optimiser steps of the whole run; fewer rows than one batch is a UserError."""
    steps = steps_per_epoch(rows, config.optim.batch_size)
    if steps == 0:
        raise UserError(
            f"optim.batch_size is {config.optim.batch_size}; allowed with {rows} training rows: "
            f"1 to {rows}"
        )
    return steps * config.optim.epochs


def fit(
    config: TrainConfig,
    engine: Engine,
    train: Rows,
    val: Rows,
    place: Place,
    history: History,
    report: Callable[[History], None],
) -> None:
    """Train from epoch `len(history)` to the last; `report` gets the history after each epoch."""
    for epoch in range(len(history), config.optim.epochs):
        began = time.perf_counter()
        loss = _train_epoch(config, engine, train, place, epoch)
        seconds = time.perf_counter() - began
        rows = steps_per_epoch(len(train), config.optim.batch_size) * config.optim.batch_size
        row = {
            "epoch": epoch + 1,
            "train_loss": loss,
            "val_cosine": validate(engine, val, place, config.optim.batch_size),
            "rows_per_second": rows / seconds,
        }
        history = [*history, row]
        if place.rank == 0:
            logger.info(
                "%s: epoch %d of %d, train loss %.4f, val cosine %.4f, %.0f rows/s",
                config.name,
                row["epoch"],
                config.optim.epochs,
                row["train_loss"],
                row["val_cosine"],
                row["rows_per_second"],
            )
        report(history)


def _train_epoch(
    config: TrainConfig, engine: Engine, train: Rows, place: Place, epoch: int
) -> float:
    """One pass; returns the mean loss over all workers' rows."""
    engine.module.train()
    order = epoch_order(train.group_sizes, config.seed, epoch)
    size = config.optim.batch_size
    steps = steps_per_epoch(len(train), size)
    shares = (worker_rows(order, step, size, place.rank, place.workers) for step in range(steps))
    total = torch.zeros(2, dtype=torch.float64)
    told = time.perf_counter()
    for step, batch in enumerate(prefetch(train, shares)):
        inputs, targets = _to_device(batch, engine.device)
        loss = cosine_loss(engine.forward(inputs), targets)
        if not torch.isfinite(loss):
            raise UserError(
                f"{config.name}: the loss is {loss.item()} at epoch {epoch + 1}, step {step + 1}, "
                f"rows {batch.ids[:8]}; lower optim.lr ({config.optim.lr}) or look at those rows"
            )
        engine.backward(loss)
        engine.step()
        total += torch.tensor([loss.item() * len(batch.ids), len(batch.ids)], dtype=torch.float64)
        if place.rank == 0 and time.perf_counter() - told > 15:
            told = time.perf_counter()
            logger.info(
                "%s: epoch %d, step %d of %d, loss %.4f",
                config.name,
                epoch + 1,
                step + 1,
                steps,
                total[0] / total[1],
            )
    return _share_of_sums(total, place)


@torch.no_grad()
def validate(engine: Engine, val: Rows, place: Place, batch_size: int) -> float:
    """Mean cosine over the rows of all workers: sums and counts are reduced, never means."""
    engine.module.eval()
    mine = np.arange(place.rank, len(val), place.workers)
    total = torch.zeros(2, dtype=torch.float64)
    shares = (mine[start : start + batch_size] for start in range(0, len(mine), batch_size))
    for batch in prefetch(val, shares):
        inputs, targets = _to_device(batch, engine.device)
        scores = cosines(engine.forward(inputs), targets)
        total += torch.tensor([scores.double().sum().item(), len(batch.ids)], dtype=torch.float64)
    return _share_of_sums(total, place)


def prefetch(rows: Rows, shares: Iterator[np.ndarray]) -> Iterator[Batch]:
    """Fetch the next batch while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for share in shares:
            ready, coming = coming, pool.submit(rows.fetch, share)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.from_numpy(batch.inputs).to(device)
    if inputs.is_floating_point():
        inputs = inputs.float()  # cached features are float16
    return inputs, torch.from_numpy(batch.targets).to(device)


def _share_of_sums(total: torch.Tensor, place: Place) -> float:
    if place.workers > 1:
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        total = total.to(device)
        dist.all_reduce(total)
    return (total[0] / total[1]).item()
