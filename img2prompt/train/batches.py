"""What a worker's loop is fed with: its place among the workers, rows, batches, sums over all."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from img2prompt.config.train import TrainConfig
from img2prompt.data.order import first_rows, steps_per_epoch
from img2prompt.data.shards import Batch
from img2prompt.errors import UserError
from img2prompt.train.checkpoint import Position


class Rows(Protocol):
    """Rows by number; `group_sizes` are the sizes of consecutive groups that are read together."""

    group_sizes: np.ndarray

    def __len__(self) -> int: ...
    def fetch(self, rows: np.ndarray) -> Batch:
        """May be called from several threads."""
        ...


class SomeRows:
    """A share of other rows, numbered from 0."""

    def __init__(self, rows: Rows, share: float, seed: int) -> None:
        self._rows = rows
        self._chosen = first_rows(rows.group_sizes, share, seed)
        ends = np.searchsorted(self._chosen, np.cumsum(rows.group_sizes))
        sizes = np.diff(ends, prepend=0)
        self.group_sizes = sizes[sizes > 0]

    def __len__(self) -> int:
        return len(self._chosen)

    def fetch(self, rows: np.ndarray) -> Batch:
        return self._rows.fetch(self._chosen[rows])


@dataclass(frozen=True)
class WorkerRank:
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


AHEAD = 2
"""Batches that are fetched while one is used: one may wait for a disk while another is decoded."""


def prefetch(rows: Rows, shares: Iterable[np.ndarray]) -> Iterator[Batch]:
    """Fetch the next batches, in threads, while this one is used."""
    coming: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(AHEAD, "fetch") as pool:
        try:
            for share in shares:
                coming.append(pool.submit(rows.fetch, share))
                if len(coming) > AHEAD:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def in_parts(batch: Batch, count: int) -> Iterator[Batch]:
    """So many parts, as equal as can be."""
    size = len(batch.ids)
    for part in range(count):
        cut = slice(part * size // count, (part + 1) * size // count)
        yield Batch(batch.ids[cut], batch.inputs[cut], batch.targets[cut], batch.prompt_ids[cut])


@dataclass(frozen=True)
class DeviceBatch(Batch):
    """A batch whose arrays are tensors on the device."""

    inputs: torch.Tensor
    """Pixels uint8 (B, S, S, 3), or features float32 (B, D)."""
    targets: torch.Tensor
    """float32 (B, 384)."""


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Move a batch; cached features, which are float16, become float32.

    Tensors that are on the device are not copied.
    """
    inputs = torch.as_tensor(batch.inputs).to(device)
    if inputs.is_floating_point():
        inputs = inputs.float()
    targets = torch.as_tensor(batch.targets).to(device)
    return DeviceBatch(batch.ids, inputs, targets, batch.prompt_ids)


def seed_step(seed: int, now: Position, rank: int) -> None:
    """Make torch's draws a function of the position, so that a resumed run draws the same."""
    words = np.random.SeedSequence([seed, now.epoch, now.step, rank]).generate_state(2)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


def sum_of_all(total: torch.Tensor, place: WorkerRank) -> torch.Tensor:
    """The sum over all workers, on the CPU."""
    if place.workers == 1:
        return total
    total = total.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return total.cpu()


def ids_of_all(own: list[str], place: WorkerRank) -> list[str]:
    """The ids that the workers hold, in order of rank."""
    if place.workers == 1:
        return own
    found: list[list[str] | None] = [None] * place.workers
    dist.all_gather_object(found, own)
    return [row_id for ids in found for row_id in ids or []]


def parts(config: TrainConfig, workers: int) -> int:
    """Passes in which each worker takes its share of a global batch; none is without rows."""
    least, most = config.optim.batch_size // workers, -(-config.optim.batch_size // workers)
    return min(least, -(-most // (config.engine.micro_batch or most)))


def rows_at_once(config: TrainConfig, workers: int) -> int:
    """Most rows that a worker takes in one pass."""
    most = -(-config.optim.batch_size // workers)
    return -(-most // parts(config, workers))


def check_batch(config: TrainConfig, workers: int) -> None:
    """A row for each worker, or a UserError."""
    size = config.optim.batch_size
    if size < workers:
        raise UserError(
            f"optim.batch_size is {size}; allowed with {workers} workers: {workers} or more"
        )
