"""Input of a worker's loop: its rank, rows, batches, and sums over all workers."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from img2prompt.config.train import TrainConfig
from img2prompt.data.ahead import map_ahead
from img2prompt.data.order import steps_per_epoch, worker_share
from img2prompt.data.shards import Batch
from img2prompt.errors import UserError
from img2prompt.train.checkpoint import Position


class Rows(Protocol):
    """Rows by number. `group_sizes` are the sizes of consecutive row groups, each read at once."""

    group_sizes: np.ndarray

    def __len__(self) -> int: ...
    def fetch(self, rows: np.ndarray) -> Batch:
        """Read rows by number; called from several threads."""
        ...


class RowSubset:
    """Some of other rows, renumbered from 0."""

    def __init__(self, rows: Rows, numbers: np.ndarray) -> None:
        """`numbers`: their row numbers, int64, ascending."""
        self._rows = rows
        self._numbers = numbers
        ends = np.searchsorted(self._numbers, np.cumsum(rows.group_sizes))
        sizes = np.diff(ends, prepend=0)
        self.group_sizes = sizes[sizes > 0]

    def __len__(self) -> int:
        return len(self._numbers)

    def fetch(self, rows: np.ndarray) -> Batch:
        return self._rows.fetch(self._numbers[rows])


@dataclass(frozen=True)
class WorkerRank:
    """Rank of this worker among all workers of a run."""

    rank: int = 0
    workers: int = 1


def total_steps(config: TrainConfig, rows: int) -> int:
    """Return the optimiser steps of a whole run.

    Raises:
        UserError: there are fewer rows than one batch has.
    """
    steps = steps_per_epoch(rows, config.optim.batch_size)
    if steps == 0:
        raise UserError(
            f"optim.batch_size is {config.optim.batch_size}; allowed with {rows} training rows: "
            f"1 to {rows}"
        )
    return steps * config.optim.epochs


PREFETCH = 2
"""Batches to fetch ahead: one may wait for a disk while another is decoded."""


def prefetch(rows: Rows, shares: Iterable[np.ndarray]) -> Iterator[Batch]:
    """Return the batches in order; the next ones are fetched in threads meanwhile."""
    return map_ahead(rows.fetch, shares, PREFETCH)


def split_batch(batch: Batch, count: int) -> Iterator[Batch]:
    """Split a batch into `count` parts whose sizes differ by one row at most."""
    size = len(batch.ids)
    for part in range(count):
        cut = slice(part * size // count, (part + 1) * size // count)
        yield Batch(batch.ids[cut], batch.inputs[cut], batch.targets[cut], batch.prompt_ids[cut])


@dataclass(frozen=True)
class BatchPrompts:
    """The distinct prompts of a global batch, equal on all workers."""

    keys: np.ndarray
    """int64 (P,), ascending: a hash of each prompt's id."""
    targets: torch.Tensor
    """float32 (P, 384) on the device: the vector of each."""

    def positions(self, prompt_ids: Sequence[str]) -> torch.Tensor:
        """Return the positions (B,) of prompts of this batch, on the device of the targets."""
        own = np.searchsorted(self.keys, _prompt_keys(prompt_ids))
        return torch.from_numpy(own).to(self.targets.device)


@dataclass(frozen=True)
class DeviceBatch(Batch):
    """A batch whose arrays are tensors on the device."""

    inputs: torch.Tensor
    """Pixels uint8 (B, S, S, 3), or features float32 (B, D)."""
    targets: torch.Tensor
    """float32 (B, 384)."""
    prompts: BatchPrompts | None = None
    """Prompts of the global batch, if the recipe's loss reads them."""


def to_device(
    batch: Batch, device: torch.device, prompts: BatchPrompts | None = None
) -> DeviceBatch:
    """Move a batch; cached features, which are float16, become float32.

    Tensors that are on the device are not copied.
    """
    inputs = torch.as_tensor(batch.inputs).to(device)
    if inputs.is_floating_point():
        inputs = inputs.float()
    targets = torch.as_tensor(batch.targets).to(device)
    return DeviceBatch(batch.ids, inputs, targets, batch.prompt_ids, prompts)


def gather_prompts(
    batch: Batch, batch_size: int, worker: WorkerRank, device: torch.device
) -> BatchPrompts:
    """Return the distinct prompts of a global batch of `batch_size` rows; `batch` is a share."""
    rows = np.arange(batch_size)
    sizes = [len(worker_share(rows, rank, worker.workers)) for rank in range(worker.workers)]
    own = torch.from_numpy(_prompt_keys(batch.prompt_ids))
    keys = _gather_rows(own, sizes, worker).numpy()
    targets = _gather_rows(torch.as_tensor(batch.targets).float(), sizes, worker)
    distinct, first = np.unique(keys, return_index=True)
    return BatchPrompts(distinct, targets[torch.from_numpy(first)].to(device))


def _prompt_keys(prompt_ids: Sequence[str]) -> np.ndarray:
    """Return a hash of each id: two of a batch of 10,000 are equal once in 10^11 batches."""
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in prompt_ids)
    return np.frombuffer(bytearray().join(digests), np.int64)  # writable, as torch wants


def _gather_rows(own: torch.Tensor, sizes: Sequence[int], worker: WorkerRank) -> torch.Tensor:
    """Return the rows of all workers, in order of rank, on the CPU; `sizes` are their numbers.

    Collectives want equal sizes, so shorter shares are padded.
    """
    if worker.workers == 1:
        return own.cpu()
    padded = own.new_zeros((max(sizes), *own.shape[1:]))
    padded[: len(own)] = own
    padded = padded.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    shares = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(shares, padded)
    return torch.cat([share[:size] for share, size in zip(shares, sizes, strict=True)]).cpu()


def seed_step(seed: int, now: Position, rank: int) -> None:
    """Seed torch by the position, so that a resumed run draws the same numbers."""
    words = np.random.SeedSequence([seed, now.epoch, now.step, rank]).generate_state(2)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


def sum_over_workers(total: torch.Tensor, worker: WorkerRank) -> torch.Tensor:
    """Sum a tensor over all workers; the result is on the CPU."""
    if worker.workers == 1:
        return total
    total = total.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return total.cpu()


def gather_ids(own: list[str], worker: WorkerRank) -> list[str]:
    """Gather row ids of all workers, in order of rank."""
    if worker.workers == 1:
        return own
    gathered: list[list[str] | None] = [None] * worker.workers
    dist.all_gather_object(gathered, own)
    return [row_id for ids in gathered for row_id in ids or []]


def micro_batches(config: TrainConfig, workers: int) -> int:
    """Return the number of passes over a worker's share of a global batch; each has a row."""
    least, most = config.optim.batch_size // workers, -(-config.optim.batch_size // workers)
    return min(least, -(-most // (config.engine.micro_batch or most)))


def rows_at_once(config: TrainConfig, workers: int) -> int:
    """Return the most rows that a worker takes in one pass."""
    most = -(-config.optim.batch_size // workers)
    return -(-most // micro_batches(config, workers))


def check_batch(config: TrainConfig, workers: int) -> None:
    """Raise a UserError when a batch has fewer rows than there are workers."""
    size = config.optim.batch_size
    if size < workers:
        raise UserError(
            f"optim.batch_size is {size}; allowed with {workers} workers: {workers} or more"
        )
