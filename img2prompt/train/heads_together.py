"""Many heads in one process, with one pass over the cached features per epoch.

Each head has its own `loop.Loop`, driven one batch at a time: a batch is read once, moved to the
device once, and every head makes its step on it. The loop seeds torch's generators before each
step, so a head drops the same inputs, and ends with the same weights, as when trained alone.

Stacking heads of equal shape into one batched product took 1.0 to 1.6 times as long on one core
(16 heads, 160 or 1,024 inputs, linear or 512 wide, batches of 128, float32), and would draw other
dropout masks.
"""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from img2prompt.data.order import steps_per_epoch
from img2prompt.data.shards import Batch
from img2prompt.distributed.placement import usable_cores
from img2prompt.model.prompt_model import build_prompt_model, load_learned_state
from img2prompt.storage import exists, join, read_bytes, write_bytes
from img2prompt.train.batches import Rows, WorkerRank, prefetch, to_device, total_steps
from img2prompt.train.checkpoint import (
    Checkpoint,
    CheckpointStore,
    DamagedError,
    History,
    Position,
    Saver,
)
from img2prompt.train.engines.plain import PlainEngine
from img2prompt.train.health import HangWatchdog, NonFiniteLossError
from img2prompt.train.job import TrainJob, checkpoints, open_rows
from img2prompt.train.loop import Loop
from img2prompt.train.recipe import build_recipe
from img2prompt.train.validation import validate

logger = logging.getLogger(__name__)

FAILED = "failed.json"
"""File in the folder of a head that failed: the reason, and its epochs."""
KEEP = 2
"""Fewest checkpoints to keep of a head: when a run is killed, some have saved one epoch more."""


@dataclass(frozen=True)
class HeadOutcome:
    """Result of training one head."""

    history: History
    seconds: float
    """Time of its steps in the epochs of `history`, with its share of reading the batches."""
    reason: str = ""
    """Why it failed; empty if it did not."""


class LearningHead:
    """One head in training: its loop, its position, and its checkpoints."""

    def __init__(
        self, job: TrainJob, width: int, rows: tuple[Rows, Rows], start: Checkpoint | None
    ) -> None:
        config = job.config
        model = build_prompt_model(None, width, config.plan, config.head, config.seed)
        if start is not None:
            load_learned_state(model, dict(start.engine.model), job.out)
        engine = PlainEngine(model, config, total_steps(config, len(rows[0])), _device())
        recipe = build_recipe(config)
        if start is not None:
            engine.load(start.engine)
            recipe.load(start.recipe)
        self.out = job.out
        self.position = start.position if start else Position()
        self.failed = False
        self.seconds = 0.0
        """Time of this epoch's steps."""
        self._saver = Saver(_store(job), max(KEEP, config.engine.keep))
        self.loop = Loop(
            config=config,
            engine=engine,
            recipe=recipe,
            train=rows[0],
            val=rows[1],
            worker=WorkerRank(),
            save=self._save,
        )

    def _save(self, position: Position) -> None:
        state = self.loop.engine.state()
        self._saver.save(Checkpoint(position, state, self.loop.recipe.state()))

    def step(self, batch: Batch) -> None:
        """Train on a batch; a non-finite loss fails the head."""
        began = time.perf_counter()
        try:
            self.position, _ = self.loop.advance(self.position, batch)
        except NonFiniteLossError as error:
            self._fail(str(error))
        self.seconds += time.perf_counter() - began

    def end_epoch(self, scores: Mapping[str, float], rows_per_second: float) -> None:
        """Save; a non-finite score fails the head."""
        self.position = self.loop.end_epoch(self.position, scores, rows_per_second)
        self.seconds = 0.0
        if all(map(math.isfinite, scores.values())):
            self._save(self.position)
        else:
            self._fail(f"non-finite validation after epoch {self.position.epoch}: {dict(scores)}")

    def _fail(self, reason: str) -> None:
        """End the training of this head; the other heads continue."""
        self.failed = True
        logger.warning("head %s failed: %s", self.loop.config.name, reason)
        failure = {"reason": reason, "history": self.position.history}
        write_bytes(join(self.out, FAILED), json.dumps(failure, indent=2).encode())

    def wait(self) -> None:
        """Wait until all checkpoints are written."""
        self._saver.wait()


def train_heads(jobs: Sequence[TrainJob], width: int) -> list[HeadOutcome]:
    """Train all heads, starting from the newest epoch that all of them have saved.

    `jobs` differ in head, learning rate and folder only; `width` is the length D of a feature.
    """
    if _device().type == "cpu":
        torch.set_num_threads(usable_cores())
    config, inputs = jobs[0].config, jobs[0].inputs
    rows = open_rows(config, inputs, "train"), open_rows(config, inputs, "val")
    able = [job for job in jobs if not exists(join(job.out, FAILED))]
    starts = _newest_shared([_store(job) for job in able])
    heads = [LearningHead(job, width, rows, start) for job, start in zip(able, starts, strict=True)]
    watchdog = HangWatchdog(WorkerRank(), config.engine.hang_timeout)
    for _ in range(heads[0].position.epoch if heads else 0, config.optim.epochs):
        if learning := [head for head in heads if not head.failed]:
            _epoch(learning, rows, watchdog)
    for head in heads:
        head.wait()
    watchdog.close()
    histories = {head.out: head.position.history for head in heads if not head.failed}
    return [_outcome(job, histories.get(job.out), len(rows[0])) for job in jobs]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _store(job: TrainJob) -> CheckpointStore:
    return checkpoints(job.out)


def _newest_shared(stores: Sequence[CheckpointStore]) -> Sequence[Checkpoint | None]:
    """Return each head's checkpoint of the newest epoch that is whole for all; else all None."""
    shared = set.intersection(*(set(store.names()) for store in stores)) if stores else set()
    for name in sorted(shared, reverse=True):
        try:
            checkpoints = [store.read(name) for store in stores]
            logger.info("heads: training resumes at %s", checkpoints[0].position)
            return checkpoints
        except DamagedError as error:
            logger.warning(
                "checkpoint %s of a head is damaged (%s): falling back to an older one", name, error
            )
    return [None] * len(stores)


def _epoch(heads: Sequence[LearningHead], rows: tuple[Rows, Rows], watchdog: HangWatchdog) -> None:
    """Train and validate heads that are at the same position for one epoch."""
    (train, val), first, began = rows, heads[0].loop, time.perf_counter()
    size, epoch = first.config.optim.batch_size, heads[0].position.epoch
    steps = steps_per_epoch(len(train), size)
    for head in heads:
        head.loop.engine.module.train()
    for batch in prefetch(train, first.shares(epoch, range(steps))):
        watchdog.beat(f"computing a step of epoch {epoch + 1}")
        on_device = to_device(batch, first.engine.device)
        for head in heads:
            if not head.failed:
                head.step(on_device)
    seconds = time.perf_counter() - began
    reading = (seconds - sum(head.seconds for head in heads)) / len(heads)
    if not (heads := [head for head in heads if not head.failed]):
        return
    scores = _validate(heads, val, watchdog)
    for head in heads:
        head.wait()  # so that no head is two checkpoints ahead of another
    for head, own in zip(heads, scores, strict=True):
        head.end_epoch(own, steps * size / (head.seconds + reading))
    best, name = max(
        (max(own.values()), head.loop.config.name) for own, head in zip(scores, heads, strict=True)
    )
    logger.info(
        "heads: epoch %d of %d; %d heads learn, best val cosine %.4f (%s), %.0f rows/s",
        epoch + 1,
        first.config.optim.epochs,
        len(heads),
        best,
        name,
        steps * size / seconds,
    )


def _validate(
    heads: Sequence[LearningHead], val: Rows, watchdog: HangWatchdog
) -> list[dict[str, float]]:
    """Return each head's scores by the name of its weights; the rows are read once for all."""
    size = heads[0].loop.config.optim.batch_size
    models = [head.loop.candidates() for head in heads]
    candidates = [candidate for own in models for candidate in own.values()]
    scores = iter(validate(candidates, val, WorkerRank(), size, watchdog.beat))
    return [{column: next(scores) for column in own} for own in models]


def _outcome(job: TrainJob, history: History | None, rows: int) -> HeadOutcome:
    """`history` is None for a head that failed."""
    reason, size = "", job.config.optim.batch_size
    if history is None:
        failure = json.loads(read_bytes(join(job.out, FAILED)))
        history, reason = failure["history"], failure["reason"]
    epoch_rows = steps_per_epoch(rows, size) * size
    seconds = sum(epoch_rows / row["rows_per_second"] for row in history)
    return HeadOutcome(history, seconds, reason)
