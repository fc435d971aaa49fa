"""Many heads in one process, on one pass over the cached features an epoch.

Each head is a `worker.Loop` of its own, driven one batch at a time: a batch is read once, moved to
the device once, and every head makes its step on it. The loop seeds torch's draws before each step,
so a head drops the same inputs, and ends with the same weights, as in a run alone.

Heads of equal shape could be stacked into one batched product. That took 1.0 to 1.6 times as long
on a core (16 heads, 160 or 1,024 inputs, linear or 512 wide, batches of 128, float32), and would
draw other dropout.
"""

import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from img2prompt.data.order import steps_per_epoch
from img2prompt.data.shards import Batch
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
from img2prompt.train.health import HangWatchdog, NotFiniteError
from img2prompt.train.job import TrainJob, checkpoints, open_rows
from img2prompt.train.loop import Loop
from img2prompt.train.validation import validate

logger = logging.getLogger(__name__)

FAILED = "failed.json"
"""In the folder of a head that learns no more: the reason, and its epochs."""
KEEP = 2
"""Fewest checkpoints of a head: in a run that is killed, some have saved an epoch more."""


@dataclass(frozen=True)
class HeadOutcome:
    """What became of a head."""

    history: History
    seconds: float
    """Of its steps, with its share of reading the batches; of the epochs in `history`."""
    reason: str = ""
    """Why it failed; empty: it did not."""


class LearningHead:
    """A head that learns: its loop, how far it is, and its checkpoints."""

    def __init__(
        self, job: TrainJob, width: int, rows: tuple[Rows, Rows], start: Checkpoint | None
    ) -> None:
        config = job.config
        model = build_prompt_model(None, width, config.plan, config.head, config.seed)
        if start is not None:
            load_learned_state(model, dict(start.engine.model), job.out)
        engine = PlainEngine(model, config, total_steps(config, len(rows[0])), _device())
        if start is not None:
            engine.load(start.engine)
        self.out = job.out
        self.now = start.position if start else Position()
        self.failed = False
        self.seconds = 0.0
        """That the steps of this epoch took."""
        self._saver = Saver(_store(job), max(KEEP, config.engine.keep))
        self.loop = Loop(config, engine, *rows, WorkerRank(), self._save)

    def _save(self, now: Position) -> None:
        self._saver.save(Checkpoint(now, self.loop.engine.state()))

    def step(self, batch: Batch) -> None:
        """Learn from a batch, or fail."""
        began = time.perf_counter()
        try:
            self.now, _ = self.loop.advance(self.now, batch)
        except NotFiniteError as error:
            self._fail(str(error))
        self.seconds += time.perf_counter() - began

    def end_epoch(self, val_cosine: float, rows_per_second: float) -> None:
        """Save, or fail."""
        self.now = self.loop.end_epoch(self.now, val_cosine, rows_per_second)
        self.seconds = 0.0
        if math.isfinite(val_cosine):
            self._save(self.now)
        else:
            self._fail(f"the validation cosine after epoch {self.now.epoch} is {val_cosine}")

    def _fail(self, reason: str) -> None:
        """Learn no more; the other heads go on."""
        self.failed = True
        logger.warning("head %s fails: %s", self.loop.config.name, reason)
        told = {"reason": reason, "history": self.now.history}
        write_bytes(join(self.out, FAILED), json.dumps(told, indent=2).encode())

    def wait(self) -> None:
        """Until all is written."""
        self._saver.wait()


def train_heads(jobs: Sequence[TrainJob], width: int) -> list[HeadOutcome]:
    """Train all heads, from the newest epoch that all of them have saved.

    `jobs` differ in head, learning rate and folder alone; `width` is that of a feature.
    """
    if _device().type == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    config, inputs = jobs[0].config, jobs[0].inputs
    rows = open_rows(config, inputs, "train"), open_rows(config, inputs, "val")
    able = [job for job in jobs if not exists(join(job.out, FAILED))]
    starts = _going_on([_store(job) for job in able])
    heads = [LearningHead(job, width, rows, start) for job, start in zip(able, starts, strict=True)]
    watch = HangWatchdog(WorkerRank(), config.engine.hang_timeout)
    for _ in range(heads[0].now.epoch if heads else 0, config.optim.epochs):
        if going := [head for head in heads if not head.failed]:
            _epoch(going, rows, watch)
    for head in heads:
        head.wait()
    watch.close()
    histories = {head.out: head.now.history for head in heads if not head.failed}
    return [_outcome(job, histories.get(job.out), len(rows[0])) for job in jobs]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _store(job: TrainJob) -> CheckpointStore:
    return checkpoints(job.out)


def _going_on(stores: Sequence[CheckpointStore]) -> Sequence[Checkpoint | None]:
    """Each head's checkpoint of the newest epoch that all have whole, or none at all."""
    shared = set.intersection(*(set(store.names()) for store in stores)) if stores else set()
    for name in sorted(shared, reverse=True):
        try:
            found = [store.read(name) for store in stores]
            logger.info("heads: go on at %s", found[0].position)
            return found
        except DamagedError as error:
            logger.warning("checkpoint %s of a head is damaged (%s): an older counts", name, error)
    return [None] * len(stores)


def _epoch(heads: Sequence[LearningHead], rows: tuple[Rows, Rows], watch: HangWatchdog) -> None:
    """All steps of an epoch, and validation, for heads that are equally far."""
    (train, val), first, began = rows, heads[0].loop, time.perf_counter()
    size, epoch = first.config.optim.batch_size, heads[0].now.epoch
    steps = steps_per_epoch(len(train), size)
    for head in heads:
        head.loop.engine.module.train()
    for batch in prefetch(train, first.shares(epoch, range(steps))):
        watch.beat(f"computing a step of epoch {epoch + 1}")
        there = Batch(batch.ids, *to_device(batch, first.engine.device))
        for head in heads:
            if not head.failed:
                head.step(there)
    seconds = time.perf_counter() - began
    reading = (seconds - sum(head.seconds for head in heads)) / len(heads)
    if not (heads := [head for head in heads if not head.failed]):
        return
    scores = validate([head.loop.engine for head in heads], val, WorkerRank(), size, watch.beat)
    for head in heads:
        head.wait()  # so that no head is two checkpoints ahead of another
    for head, score in zip(heads, scores, strict=True):
        head.end_epoch(score, steps * size / (head.seconds + reading))
    best = max(zip(scores, heads, strict=True), key=lambda pair: pair[0])
    logger.info(
        "heads: epoch %d of %d; %d learn, the best val cosine is %.4f (%s), %.0f rows/s",
        epoch + 1,
        first.config.optim.epochs,
        len(heads),
        best[0],
        best[1].loop.config.name,
        steps * size / seconds,
    )


def _outcome(job: TrainJob, history: History | None, rows: int) -> HeadOutcome:
    """`history`: None of a head that failed."""
    reason, size = "", job.config.optim.batch_size
    if history is None:
        told = json.loads(read_bytes(join(job.out, FAILED)))
        history, reason = told["history"], told["reason"]
    an_epoch = steps_per_epoch(rows, size) * size
    seconds = sum(an_epoch / row["rows_per_second"] for row in history)
    return HeadOutcome(history, seconds, reason)
