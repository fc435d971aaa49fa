"""The training loop of one worker: batches, loss, step, validation, and going on where it ended.

The loop sees an engine and rows, never Ray or DeepSpeed; `stages/train.py` gives it both.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from img2prompt.config import TrainConfig
from img2prompt.data.order import epoch_order, steps_per_epoch, worker_rows
from img2prompt.data.shards import Batch
from img2prompt.errors import UserError
from img2prompt.model.loss import cosine_loss, cosines
from img2prompt.stages.checkpoint import Progress
from img2prompt.stages.engine import Engine

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Loop:
    """One worker's part of a run. All workers make the same calls in the same order."""

    config: TrainConfig
    engine: Engine
    train: Rows
    val: Rows
    place: Place
    save: Callable[[Progress], None]
    """Keeps the engine's state; called after each epoch and every `engine.save_every` steps."""
    report: Callable[[dict[str, Any]], None]
    """Gets each epoch's row of the history."""

    def run(self, progress: Progress) -> Progress:
        """Train from `progress` to the last epoch."""
        while progress.epoch < self.config.optim.epochs:
            progress = self._epoch(progress)
            self.save(progress)
            self.report(progress.history[-1])
        return progress

    def _epoch(self, progress: Progress) -> Progress:
        """What is left of an epoch, and validation."""
        began, size = time.perf_counter(), self.config.optim.batch_size
        steps = steps_per_epoch(len(self.train), size)
        done = self._steps(progress, steps)
        seconds = time.perf_counter() - began
        row = {
            "epoch": progress.epoch + 1,
            "train_loss": done.loss_sum / done.rows,
            "val_cosine": validate(self.engine, self.val, self.place, size),
            "rows_per_second": (steps - progress.step) * size / seconds,
        }
        if self.place.rank == 0:
            logger.info(
                "%s: epoch %d of %d, train loss %.4f, val cosine %.4f, %.0f rows/s",
                self.config.name,
                row["epoch"],
                self.config.optim.epochs,
                row["train_loss"],
                row["val_cosine"],
                row["rows_per_second"],
            )
        return Progress(epoch=progress.epoch + 1, history=[*progress.history, row])

    def _steps(self, start: Progress, steps: int) -> Progress:
        """Steps from `start` to the end of its epoch; the sums are over all workers' rows."""
        self.engine.module.train()
        own = _own_sums(start, self.place)
        told = time.perf_counter()
        todo = range(start.step, steps)
        batches = prefetch(self.train, self._shares(start.epoch, todo))
        for step, batch in zip(todo, batches, strict=True):
            now = replace(start, step=step)
            loss, rows = self._step(now, batch), len(batch.ids)
            own += torch.tensor([loss * rows, rows], dtype=torch.float64)
            if self._is_due(step + 1) and step + 1 < steps:
                self.save(_sums_of_all(own, replace(start, step=step + 1), self.place))
            if self.place.rank == 0 and time.perf_counter() - told > 15:
                told = time.perf_counter()
                mean = own[0] / own[1]
                logger.info("%s: %s of %d, loss %.4f", self.config.name, now, steps, mean)
        return _sums_of_all(own, replace(start, step=steps), self.place)

    def _shares(self, epoch: int, steps: range) -> Iterator[np.ndarray]:
        """This worker's rows of each of the epoch's global batches."""
        order = epoch_order(self.train.group_sizes, self.config.seed, epoch)
        size, place = self.config.optim.batch_size, self.place
        return (worker_rows(order, step, size, place.rank, place.workers) for step in steps)

    def _is_due(self, step: int) -> bool:
        every = self.config.engine.save_every
        return every > 0 and step % every == 0

    def _step(self, now: Progress, batch: Batch) -> float:
        """One global batch; returns the mean loss of this worker's rows."""
        seed_step(self.config.seed, now, self.place.rank)
        losses = [self._part(now, part) for part in self._parts(batch)]
        self.engine.step()
        return sum(losses) / len(losses)

    def _parts(self, batch: Batch) -> list[Batch]:
        size = self.config.engine.micro_batch or len(batch.ids)
        cuts = [slice(start, start + size) for start in range(0, len(batch.ids), size)]
        return [Batch(batch.ids[cut], batch.inputs[cut], batch.targets[cut]) for cut in cuts]

    def _part(self, now: Progress, part: Batch) -> float:
        """Forward and backward of rows that are taken at once; returns their mean loss."""
        inputs, targets = _to_device(part, self.engine.device)
        loss = cosine_loss(self.engine.forward(inputs), targets)
        if not torch.isfinite(loss):
            raise UserError(
                f"{self.config.name}: the loss is {loss.item()} at {now}, rows {part.ids[:8]}; "
                f"lower optim.lr ({self.config.optim.lr}) or look at those rows"
            )
        self.engine.backward(loss)
        return loss.item()


def seed_step(seed: int, now: Progress, rank: int) -> None:
    """Make torch's draws a function of the position, so that a resumed run draws the same."""
    words = np.random.SeedSequence([seed, now.epoch, now.step, rank]).generate_state(2)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


@torch.no_grad()
def validate(engine: Engine, val: Rows, place: Place, batch_size: int) -> float:
    """Mean cosine over the rows of all workers: sums and counts are reduced, never means.

    All workers run equally many batches, as ZeRO-3 needs; rows beyond the end are the first ones
    again, and are dropped from the sums.
    """
    engine.module.eval()
    mine = np.arange(place.rank, -(-len(val) // place.workers) * place.workers, place.workers)
    starts = range(0, len(mine), batch_size)
    shares = (mine[start : start + batch_size] % len(val) for start in starts)
    total = torch.zeros(2, dtype=torch.float64)
    for start, batch in zip(starts, prefetch(val, shares), strict=True):
        inputs, targets = _to_device(batch, engine.device)
        scores = cosines(engine.forward(inputs), targets).double().cpu()
        kept = torch.from_numpy(mine[start : start + batch_size] < len(val))
        total += torch.tensor([scores[kept].sum().item(), kept.sum().item()], dtype=torch.float64)
    total = sum_of_all(total, place)
    return (total[0] / total[1]).item()


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


def _own_sums(start: Progress, place: Place) -> torch.Tensor:
    """Loss and rows so far, on one of the workers."""
    sums = [start.loss_sum, start.rows] if place.rank == 0 else [0.0, 0.0]
    return torch.tensor(sums, dtype=torch.float64)


def _sums_of_all(own: torch.Tensor, now: Progress, place: Place) -> Progress:
    loss_sum, rows = sum_of_all(own.clone(), place).tolist()
    return replace(now, loss_sum=loss_sum, rows=int(rows))


def sum_of_all(total: torch.Tensor, place: Place) -> torch.Tensor:
    """The sum over all workers, on the CPU."""
    if place.workers == 1:
        return total
    total = total.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return total.cpu()
