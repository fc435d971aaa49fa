"""The training loop of one worker: batches, loss, step, validation, and going on where it ended.

The loop sees an engine and rows, never Ray or DeepSpeed; `ray_worker.py` gives it both.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from img2prompt.config.train import TrainConfig
from img2prompt.data.order import epoch_batches, steps_per_epoch, worker_share
from img2prompt.data.shards import Batch
from img2prompt.model.loss import cosine_loss, cosines
from img2prompt.train.batches import (
    Rows,
    WorkerRank,
    ids_of_all,
    in_parts,
    parts,
    prefetch,
    seed_step,
    sum_of_all,
    to_device,
)
from img2prompt.train.checkpoint import Position
from img2prompt.train.engines.base import Engine
from img2prompt.train.health import AskedToStop, NotFiniteError, StoppedError, Vote
from img2prompt.train.steplog import StepLog
from img2prompt.train.validation import validate

logger = logging.getLogger(__name__)


def _nothing(*_: Any) -> None: ...


@dataclass(frozen=True)
class Loop:
    """One worker's part of a run. All workers make the same calls in the same order."""

    config: TrainConfig
    engine: Engine
    train: Rows
    val: Rows
    place: WorkerRank
    save: Callable[[Position], None]
    """Keeps the engine's state; called after each epoch, and inside it when that is due."""
    report: Callable[[dict[str, Any]], None] = _nothing
    """Gets each epoch's row of the history."""
    vote: Callable[[], Vote] = Vote
    """What this worker knows: whether the run has to end, or a checkpoint is due."""
    beat: Callable[[str], None] = _nothing
    """Hears what the loop is about to do."""
    log: StepLog = field(default_factory=StepLog)
    until: int = 0
    """Epochs after which to pause; 0: those of the config."""

    def run(self, position: Position) -> Position:
        """Train from `position` to the last epoch, or to the one to pause after.

        Raises:
            NotFiniteError: the loss is no number, more often than may be skipped.
            AskedToStop, StoppedError: the vote was to end; `save` was called before.
        """
        while position.epoch < (self.until or self.config.optim.epochs):
            position = self._epoch(position)
            self.save(position)
            self.report(position.history[-1])
        return position

    @property
    def _steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.train), self.config.optim.batch_size)

    def _epoch(self, position: Position) -> Position:
        """What is left of an epoch, and validation."""
        began, size = time.perf_counter(), self.config.optim.batch_size
        done = self._steps(position)
        rate = (done.step - position.step) * size / (time.perf_counter() - began)
        (score,) = validate([self.engine], self.val, self.place, size, self.beat)
        after = self.end_epoch(done, score, rate)
        row = after.history[-1]
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
        return after

    def end_epoch(self, done: Position, val_cosine: float, rows_per_second: float) -> Position:
        """The position after an epoch whose last step is `done`, with its row of the history."""
        row = {
            "epoch": done.epoch + 1,
            "train_loss": done.loss_sum / done.rows if done.rows else float("nan"),
            "val_cosine": val_cosine,
            "rows_per_second": rows_per_second,
        }
        self.log.epoch(row, row["epoch"] * self._steps_per_epoch)
        history = [*done.history, row]
        return Position(epoch=done.epoch + 1, history=history, skipped=done.skipped)

    def _steps(self, now: Position) -> Position:
        """Steps from `now` to the end of its epoch; the sums are over all workers' rows."""
        self.engine.module.train()
        if self.place.rank > 0:
            now = replace(now, loss_sum=0.0, rows=0)  # the first worker has those of before
        todo = range(now.step, self._steps_per_epoch)
        batches = prefetch(self.train, self.shares(now.epoch, todo))
        for _ in todo:
            self.beat(f"reading the rows of {now}")
            with self.log.timed("data"):
                batch = next(batches)
            self.beat(f"computing {now}")
            now, vote = self.advance(now, batch)
            self._after(now, vote)
        return _sums_of_all(now, self.place)

    def advance(self, now: Position, batch: Batch) -> tuple[Position, Vote]:
        """One global batch; the position after it, with the sums of this worker's rows."""
        loss, vote = self._step(now, batch)
        if loss is None:
            return replace(now, step=now.step + 1, skipped=now.skipped + 1), vote
        rows = len(batch.ids)
        self.log.add(loss, rows)
        sums = {"loss_sum": now.loss_sum + loss * rows, "rows": now.rows + rows}
        return replace(now, step=now.step + 1, **sums), vote

    def _after(self, now: Position, vote: Vote) -> None:
        """Tell, save and stop between two steps."""
        if self.place.rank == 0 and (self.log.is_due or now.step == self._steps_per_epoch):
            self._tell(now)
        every = self.config.engine.save_every
        due = vote.late or (every > 0 and now.step % every == 0)
        if vote.ends or (due and now.step < self._steps_per_epoch):
            self.beat(f"saving before {now}")
            self.save(_sums_of_all(now, self.place))
        if vote.asked:
            raise AskedToStop(
                f"{self.config.name} was asked to stop and is saved before {now}; run the same "
                "command again: it goes on there"
            )
        if vote.taken:
            raise StoppedError(
                f"workers are to be replaced; {self.config.name} is saved before {now}"
            )

    def _tell(self, now: Position) -> None:
        step = now.epoch * self._steps_per_epoch + now.step
        is_due = self.log.is_due
        line = self.log.line(step=step, epoch=now.epoch + 1, skipped=now.skipped)
        if not is_due:
            return  # the epoch is over, and has a line of its own
        mfu = "" if line["mfu"] is None else f", MFU {line['mfu']:.1%}"
        logger.info(
            "%s: epoch %d, step %d of %d, loss %.4f; %.0f images/s%s; a step: data %.0f ms, "
            "forward and backward %.0f ms, optimiser %.0f ms; %.2f worker-hours so far",
            self.config.name,
            now.epoch + 1,
            now.step,
            self._steps_per_epoch,
            float("nan") if line["loss"] is None else line["loss"],
            line["images_per_s"],
            mfu,
            *(1000 * line[f"{name}_s"] for name in ("data", "compute", "step")),
            line["worker_hours"],
        )

    def shares(self, epoch: int, steps: range) -> Iterator[np.ndarray]:
        """This worker's rows of each of the epoch's global batches."""
        size, place = self.config.optim.batch_size, self.place
        batches = epoch_batches(self.train.group_sizes, self.config.seed, epoch, size)
        return (worker_share(batches[step], place.rank, place.workers) for step in steps)

    def _step(self, now: Position, batch: Batch) -> tuple[float | None, Vote]:
        """One global batch; the mean loss of this worker's rows, None if it was skipped."""
        seed_step(self.config.seed, now, self.place.rank)
        total, vote, kept = 0.0, self.vote(), self._statistics()
        for part in in_parts(batch, parts(self.config, self.place.workers)):
            with self.log.timed("compute"):
                inputs, targets = to_device(part, self.engine.device)
                predicted = self.engine.forward(inputs)
                loss = cosine_loss(predicted, targets)
                vote = replace(vote, bad=not torch.isfinite(loss)).of_all(self.place)
                if vote.bad:
                    self._count_bad(now, part, cosines(predicted, targets))
                    for buffer, before in zip(self.engine.module.buffers(), kept, strict=True):
                        buffer.copy_(before)
                    return None, vote
                self.engine.backward(loss * self._weight(part))
            total += loss.item() * len(part.ids)
        with self.log.timed("step"):
            self.engine.step()
        return total / len(batch.ids), vote

    def _weight(self, part: Batch) -> float:
        """How many times the average part's rows it has: shares and parts may differ by a row."""
        workers, size = self.place.workers, self.config.optim.batch_size
        return len(part.ids) * workers * parts(self.config, workers) / size

    def _statistics(self) -> list[torch.Tensor]:
        """Copies of what a forward pass changes, if the pass may turn out not to count."""
        may_skip = self.config.engine.skip_nonfinite > 0
        return [buffer.clone() for buffer in self.engine.module.buffers()] if may_skip else []

    def _count_bad(self, now: Position, part: Batch, scores: torch.Tensor) -> None:
        """Skip the batch if that is allowed, else stop; tell the rows."""
        bad = (~torch.isfinite(scores)).tolist()
        ids = ids_of_all([i for i, no in zip(part.ids, bad, strict=True) if no], self.place)
        told = f"{self.config.name}: the loss is no finite number at {now}, rows {ids[:16]}"
        allowed = self.config.engine.skip_nonfinite
        if now.skipped >= allowed:
            raise NotFiniteError(
                f"{told}; {now.skipped} batches skipped before, engine.skip_nonfinite allows "
                f"{allowed}. Look at those rows, or lower optim.lr ({self.config.optim.lr})"
            )
        if self.place.rank == 0:
            logger.warning("%s; batch skipped, %d of %d", told, now.skipped + 1, allowed)


def _sums_of_all(now: Position, place: WorkerRank) -> Position:
    """The same position with the sums over all workers."""
    own = torch.tensor([now.loss_sum, now.rows], dtype=torch.float64)
    loss_sum, rows = sum_of_all(own, place).tolist()
    return replace(now, loss_sum=loss_sum, rows=int(rows))
