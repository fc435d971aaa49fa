"""The training loop of one worker: batches, loss, step, validation, and resuming anywhere.

The loop sees an engine, a recipe and rows, never Ray or DeepSpeed; `worker.py` provides them.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from img2prompt.config.train import TrainConfig
from img2prompt.data.order import epoch_batches, steps_per_epoch, worker_share
from img2prompt.data.shards import Batch
from img2prompt.model.loss import cosines
from img2prompt.train.batches import (
    BatchPrompts,
    Rows,
    WorkerRank,
    gather_ids,
    gather_prompts,
    micro_batches,
    prefetch,
    seed_step,
    split_batch,
    sum_over_workers,
    to_device,
)
from img2prompt.train.checkpoint import RAW, Position, best_weights, score_columns
from img2prompt.train.engines.base import Engine
from img2prompt.train.health import NonFiniteLossError, PreemptedError, StopRequestedError, Vote
from img2prompt.train.prompt_rows import rows_of_epoch
from img2prompt.train.recipe import Recipe
from img2prompt.train.steplog import StepLog
from img2prompt.train.validation import Candidate, validate

logger = logging.getLogger(__name__)


def _nothing(*_: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One worker's part of a run. All workers make the same calls in the same order."""

    config: TrainConfig
    engine: Engine
    recipe: Recipe
    train: Rows
    val: Rows
    worker: WorkerRank
    save: Callable[[Position], None]
    """Saves engine and recipe; called after each epoch, and inside one when a checkpoint is due."""
    report: Callable[[dict[str, Any]], None] = _nothing
    """Called with each epoch's row of the history."""
    vote: Callable[[], Vote] = Vote
    """Returns what this worker knows: that the run has to end, or that a checkpoint is due."""
    beat: Callable[[str], None] = _nothing
    """Called with what the loop is about to do."""
    log: StepLog = field(default_factory=StepLog)
    until: int = 0
    """Epochs after which to pause; 0: the config's number of epochs."""

    def run(self, position: Position) -> Position:
        """Train from `position` to the last epoch, or to the one to pause after.

        Raises:
            NonFiniteLossError: the loss is not finite, more often than may be skipped, or a
                validation cosine is not.
            StopRequestedError, PreemptedError: the workers voted to end; `save` was called before.
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
        """Train the rest of an epoch, and validate."""
        began, size = time.perf_counter(), self.config.optim.batch_size
        done = self._steps(position)
        rate = (done.step - position.step) * size / (time.perf_counter() - began)
        models = self.candidates()
        scores = validate(list(models.values()), self.val, self.worker, size, self.beat)
        by_name = dict(zip(models, scores, strict=True))
        if not all(map(math.isfinite, scores)):
            raise NonFiniteLossError(
                f"{self.config.name}: non-finite validation after epoch {position.epoch + 1}: "
                f"{by_name}. Lower optim.lr ({self.config.optim.lr})"
            )
        after = self.end_epoch(done, by_name, rate)
        if self.worker.rank == 0:
            self._log_epoch(after.history[-1])
        return after

    def candidates(self) -> dict[str, Candidate]:
        """Return the models to validate, by the name of their weights."""
        sets = {RAW: {}, **self.recipe.weights_to_validate()}
        return {name: Candidate(self.engine, weights) for name, weights in sets.items()}

    def end_epoch(
        self, done: Position, scores: Mapping[str, float], rows_per_second: float
    ) -> Position:
        """Return the position after an epoch whose last step is `done`, with its history row.

        `scores` are validation cosines by the name of the weights.
        """
        epoch = done.epoch + 1
        row = {
            "epoch": epoch,
            "train_loss": done.loss_sum / done.rows if done.rows else float("nan"),
            **score_columns(scores),
            "rows_per_second": rows_per_second,
        }
        self.log.epoch(row, epoch * self._steps_per_epoch)
        history = [*done.history, row]
        return Position(epoch=epoch, history=history, skipped=done.skipped)

    def _steps(self, position: Position) -> Position:
        """Make the steps from `position` to the end of its epoch; sums are over all workers."""
        self.engine.module.train()
        if self.worker.rank > 0:
            position = replace(position, loss_sum=0.0, rows=0)  # rank 0 holds the earlier sums
        steps = range(position.step, self._steps_per_epoch)
        rows = rows_of_epoch(self.train, position.epoch)
        batches = prefetch(rows, self.shares(position.epoch, steps))
        for _ in steps:
            self.beat(f"reading the rows of {position}")
            with self.log.timed("data"):
                batch = next(batches)
            self.beat(f"computing {position}")
            position, vote = self.advance(position, batch)
            self._after_step(position, vote)
        return _sums_over_workers(position, self.worker)

    def advance(self, position: Position, batch: Batch) -> tuple[Position, Vote]:
        """Train on one global batch; the returned position has the sums of this worker's rows."""
        loss, vote = self._step(position, batch)
        if loss is None:
            return replace(position, step=position.step + 1, skipped=position.skipped + 1), vote
        rows = len(batch.ids)
        sums = {"loss_sum": position.loss_sum + loss * rows, "rows": position.rows + rows}
        return replace(position, step=position.step + 1, **sums), vote

    def _after_step(self, position: Position, vote: Vote) -> None:
        """Log, save and stop as is due between two steps."""
        ends_epoch = position.step == self._steps_per_epoch
        if self.worker.rank == 0 and (self.log.is_due or ends_epoch):
            self._log_steps(position)
        every = self.config.engine.save_every
        due = vote.save_due or (every > 0 and position.step % every == 0)
        if vote.ends or (due and not ends_epoch):
            self.beat(f"saving before {position}")
            self.save(_sums_over_workers(position, self.worker))
        if vote.stop_requested:
            raise StopRequestedError(
                f"{self.config.name} is saved before {position}; run the same command again to "
                "resume there"
            )
        if vote.preempted:
            raise PreemptedError(
                f"workers are being replaced; {self.config.name} is saved before {position}"
            )

    def shares(self, epoch: int, steps: range) -> Iterator[np.ndarray]:
        """This worker's row numbers of each of the epoch's global batches."""
        size, worker = self.config.optim.batch_size, self.worker
        group_sizes = rows_of_epoch(self.train, epoch).group_sizes
        batches = epoch_batches(group_sizes, self.config.seed, epoch, size)
        return (worker_share(batches[step], worker.rank, worker.workers) for step in steps)

    def _step(self, position: Position, batch: Batch) -> tuple[float | None, Vote]:
        """Train on one global batch; return the mean loss of this worker's rows, None if skipped.

        A global batch is skipped on every worker when the loss of any row is not finite.
        """
        seed_step(self.config.seed, position, self.worker.rank)
        vote, buffers = self.vote(), self._copy_buffers()
        total, totals, count = 0.0, dict[str, float](), len(batch.ids)
        prompts = self._prompts(batch)
        for part in split_batch(batch, micro_batches(self.config, self.worker.workers)):
            with self.log.timed("compute"):
                rows = self.recipe.augment(to_device(part, self.engine.device, prompts), position)
                predicted = self.engine.forward(rows.inputs)
                losses = self.recipe.loss(predicted, rows)
                loss, loss_parts = self.recipe.penalised(*losses, self.engine.module)
                vote = replace(vote, nonfinite=not torch.isfinite(loss)).of_all(self.worker)
                if vote.nonfinite:
                    self._skip_or_raise(position, part, cosines(predicted, rows.targets))
                    for buffer, before in zip(self.engine.module.buffers(), buffers, strict=True):
                        buffer.copy_(before)
                    return None, vote
                self.engine.backward(loss * self._weight(part))
            total += loss.item() * len(part.ids)
            for name, value in loss_parts.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(part.ids)
        with self.log.timed("step"):
            self.engine.step()
            self.recipe.after_step(self.engine)
        self.log.add(total / count, count, {name: sum_ / count for name, sum_ in totals.items()})
        return total / count, vote

    def _prompts(self, batch: Batch) -> BatchPrompts | None:
        """Return the prompts of the global batch, if the loss reads them."""
        if not self.recipe.reads_prompts:
            return None
        size = self.config.optim.batch_size
        return gather_prompts(batch, size, self.worker, self.engine.device)

    def _weight(self, part: Batch) -> float:
        """Rows of this part over those of an average part: shares and parts may differ by a row."""
        workers, size = self.worker.workers, self.config.optim.batch_size
        return len(part.ids) * workers * micro_batches(self.config, workers) / size

    def _copy_buffers(self) -> list[torch.Tensor]:
        """Copy what a forward pass changes, if its batch may be skipped."""
        may_skip = self.config.engine.skip_nonfinite > 0
        return [buffer.clone() for buffer in self.engine.module.buffers()] if may_skip else []

    def _skip_or_raise(self, position: Position, part: Batch, scores: torch.Tensor) -> None:
        """Log that the batch is skipped, or raise if no more may be; both name the rows."""
        nonfinite = (~torch.isfinite(scores)).tolist()
        own = [row_id for row_id, is_bad in zip(part.ids, nonfinite, strict=True) if is_bad]
        ids = gather_ids(own, self.worker)
        problem = f"{self.config.name}: non-finite loss at {position}, rows {ids[:16]}"
        allowed = self.config.engine.skip_nonfinite
        if position.skipped >= allowed:
            raise NonFiniteLossError(
                f"{problem}; {position.skipped} batches skipped before, engine.skip_nonfinite "
                f"allows {allowed}. Look at those rows, or lower optim.lr ({self.config.optim.lr})"
            )
        if self.worker.rank == 0:
            logger.warning("%s; batch skipped, %d of %d", problem, position.skipped + 1, allowed)

    def _log_epoch(self, row: Mapping[str, Any]) -> None:
        logger.info(
            "%s: epoch %d of %d, train loss %.4f, val cosine %.4f (%s weights), %.0f rows/s",
            self.config.name,
            row["epoch"],
            self.config.optim.epochs,
            row["train_loss"],
            row["val_cosine"],
            best_weights(row),
            row["rows_per_second"],
        )

    def _log_steps(self, position: Position) -> None:
        step = position.epoch * self._steps_per_epoch + position.step
        is_due = self.log.is_due
        line = self.log.line(step=step, epoch=position.epoch + 1, skipped=position.skipped)
        if not is_due:
            return  # the epoch ends here and is logged by itself
        mfu = "" if line["mfu"] is None else f", MFU {line['mfu']:.1%}"
        logger.info(
            "%s: epoch %d, step %d of %d, loss %.4f; %.0f images/s%s; per step: data %.0f ms, "
            "forward and backward %.0f ms, optimiser %.0f ms; %.2f worker-hours so far",
            self.config.name,
            position.epoch + 1,
            position.step,
            self._steps_per_epoch,
            float("nan") if line["loss"] is None else line["loss"],
            line["images_per_s"],
            mfu,
            *(1000 * line[f"{name}_s"] for name in ("data", "compute", "step")),
            line["worker_hours"],
        )


def _sums_over_workers(position: Position, worker: WorkerRank) -> Position:
    """Return the position with its sums taken over all workers."""
    own = torch.tensor([position.loss_sum, position.rows], dtype=torch.float64)
    loss_sum, rows = sum_over_workers(own, worker).tolist()
    return replace(position, loss_sum=loss_sum, rows=int(rows))
