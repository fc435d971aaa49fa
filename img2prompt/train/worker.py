"""One worker of a run: open the rows, resume, run the loop, save, and end together.

A `WorkerContext` is what the worker knows of its run's processes. `ray_worker.py` has the one of
Ray Train. `OneWorker` is for a run in this process, which nobody replaces: what ends it goes to
the caller, and the same call resumes.
"""

import contextlib
import functools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch

from img2prompt.config.base import dotted
from img2prompt.config.train import TrainConfig
from img2prompt.data.order import steps_per_epoch
from img2prompt.distributed.placement import usable_cores
from img2prompt.errors import UserError
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import load_learned_state
from img2prompt.model.towers.build import read_shape
from img2prompt.train.batches import WorkerRank, total_steps
from img2prompt.train.checkpoint import Checkpoint, CheckpointStore, Position, Saver
from img2prompt.train.engines.base import Engine
from img2prompt.train.engines.build import build_engine
from img2prompt.train.estimate import row_cost
from img2prompt.train.health import (
    SIGTERM,
    FileWatch,
    HangWatchdog,
    NonFiniteLossError,
    PreemptedError,
    StopRequestedError,
    Vote,
)
from img2prompt.train.job import (
    TrainJob,
    build_model,
    checkpoints,
    guarded_prompts,
    open_rows,
)
from img2prompt.train.loop import Loop
from img2prompt.train.recipe import Recipe, build_recipe
from img2prompt.train.steplog import StepLog
from img2prompt.workspace import RunFolder

logger = logging.getLogger(__name__)

DECODERS = 16
"""Most threads that decode pictures for one GPU. A CPU worker has one: its cores are in use."""

SMALL_STEP = 2e8
"""FLOP of a worker's step up to which it computes with one thread. That takes milliseconds, and
threads would mostly wait for each other: 31 steps of a probe took 13 s in two threads and 0.1 s in
one, with the same weights, while other processes used the cores."""

T = TypeVar("T")


class WorkerContext(ABC):
    """A worker's rank and device, and how it reaches the other processes of its run."""

    def __init__(self, rank: WorkerRank, device: torch.device, cores: int) -> None:
        """`cores` are those of the machine that this worker may use."""
        self.rank = rank
        self.device = device
        self.cores = cores
        self.decoders = 1 if device.type == "cpu" else min(cores, DECODERS)

    @abstractmethod
    def report(self, row: dict[str, Any]) -> None:
        """Report an epoch's row of the history to the driver."""

    @abstractmethod
    def observe(self, name: str, line: Mapping[str, Any]) -> None:
        """Show a line of the metrics of the run `name` to those who watch the cluster."""

    @abstractmethod
    def from_first(self, value: T) -> T:
        """Return the value of the worker of rank 0, on all workers."""

    @abstractmethod
    def wait_for_all(self) -> None:
        """Wait until all workers call this."""

    @abstractmethod
    def notice(self) -> object | None:
        """Return the newest notice that a machine of this run will be taken away, if any."""


class OneWorker(WorkerContext):
    """The only worker of a run, in this process."""

    def __init__(self) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(WorkerRank(), device, usable_cores())

    def report(self, row: dict[str, Any]) -> None:
        """Do nothing: the checkpoints contain the history."""

    def observe(self, name: str, line: Mapping[str, Any]) -> None:
        """Do nothing: there is no cluster."""

    def from_first(self, value: T) -> T:
        return value

    def wait_for_all(self) -> None:
        """Return at once."""

    def notice(self) -> object | None:
        return None


def train_worker(job: TrainJob, context: WorkerContext) -> None:
    """Train one worker's part, starting from the newest checkpoint."""
    timeout = job.config.engine.hang_timeout
    with (
        _threads(job.config, context),
        contextlib.closing(HangWatchdog(context.rank, timeout)) as watchdog,
    ):
        _train(job, context, watchdog)


@contextlib.contextmanager
def _threads(config: TrainConfig, context: WorkerContext) -> Iterator[None]:
    """Let torch compute with as many threads as suit a step, and restore its number afterwards."""
    if context.device.type != "cpu":
        yield
        return
    before, a_row = torch.get_num_threads(), row_cost(config, read_shape(config.tower), half=False)
    step = (a_row.forward + a_row.backward) * config.optim.batch_size / context.rank.workers
    torch.set_num_threads(1 if step <= SMALL_STEP else context.cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(job: TrainJob, context: WorkerContext, watchdog: HangWatchdog) -> None:
    worker, device, config = context.rank, context.device, job.config
    store, decoders = checkpoints(job.out), context.decoders
    train, val = (open_rows(config, job.inputs, split, decoders) for split in ("train", "val"))
    model, checkpoint = build_model(config, job.inputs), _newest_checkpoint(store, context)
    recipe = build_recipe(config, model, guarded_prompts(config, job.inputs))
    if checkpoint is not None:
        load_learned_state(model, dict(checkpoint.engine.model), store.uri)
    engine = build_engine(model, config, total_steps(config, len(train)), device)
    if checkpoint is not None:
        engine.load(checkpoint.engine)
        recipe.load(checkpoint.recipe)
        logger.info("%s: resumes at %s", config.name, checkpoint.position)
    start = checkpoint.position if checkpoint else Position()
    stop_file = RunFolder(job.out).stop_request
    writer = CheckpointWriter(config, engine, recipe, context, store, stop_file)
    done = start.epoch * steps_per_epoch(len(train), config.optim.batch_size) + start.step
    log = _log(job, context, done)
    loop = Loop(
        config=config,
        engine=engine,
        recipe=recipe,
        train=train,
        val=val,
        worker=worker,
        save=writer.save,
        report=context.report,
        vote=writer.vote,
        beat=watchdog.beat,
        log=log,
        until=job.until,
    )
    try:
        loop.run(start)
    except (PreemptedError, StopRequestedError):
        writer.finish()
        raise
    except NonFiniteLossError as error:
        writer.finish()
        raise UserError(f"{error}. The last good checkpoint: {store.last()}") from error
    finally:
        log.close()
    writer.finish()


class CheckpointWriter:
    """Saves a worker's run, and votes for saving and stopping it."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        recipe: Recipe,
        context: WorkerContext,
        store: CheckpointStore,
        stop_file: str,
    ) -> None:
        self._seconds = config.engine.save_seconds
        self._engine = engine
        self._recipe = recipe
        self._context = context
        self._is_first = context.rank.rank == 0
        self._saver = Saver(store, config.engine.keep)
        self._stop_file = FileWatch(stop_file) if self._is_first else None
        self._saved_at = time.monotonic()
        self._notice: object | None = None

    def save(self, position: Position) -> None:
        """Begin to write a checkpoint; all workers call this, and the first writes."""
        state = self._engine.state()
        if self._is_first:
            self._saver.save(Checkpoint(position, state, self._recipe.state()))
        self._saved_at = time.monotonic()

    def vote(self) -> Vote:
        """This worker's vote before a step."""
        due = 0 < self._seconds < time.monotonic() - self._saved_at or self._is_warned()
        stop = self._stop_file is not None and self._stop_file.seen.is_set()
        return Vote(
            preempted=SIGTERM.is_set(), stop_requested=stop, save_due=due and self._is_first
        )

    def _is_warned(self) -> bool:
        """Return True once for each notice that a machine will be taken away (`ray drain-node`)."""
        before = self._notice
        self._notice = self._context.notice()
        if self._notice is before or self._notice is None or not self._is_first:
            return False
        logger.warning("a machine of this run will be taken away: saving a checkpoint")
        return True

    def finish(self) -> None:
        """Wait on all workers until everything is written, as they end together."""
        if self._stop_file is not None:
            self._stop_file.close()
        self._saver.wait()
        self._context.wait_for_all()


def _newest_checkpoint(store: CheckpointStore, context: WorkerContext) -> Checkpoint | None:
    """Return the newest whole checkpoint; all workers resume from the one that rank 0 read."""
    checkpoint = store.newest() if context.rank.rank == 0 else None
    name = context.from_first(checkpoint.position.name if checkpoint else None)
    return store.read(name) if name and checkpoint is None else checkpoint


def _log(job: TrainJob, context: WorkerContext, done: int) -> StepLog:
    """Return the log of the run; only that of the first worker writes."""
    if context.rank.rank > 0:
        return StepLog()
    config, device = job.config, context.device
    half = compute_dtype(config.engine.precision, device) != torch.float32
    a_row = row_cost(config, read_shape(config.tower), half=half)
    return StepLog(
        job.out,
        config.name,
        step=done,
        workers=context.rank.workers,
        flop=a_row.forward + a_row.backward,
        device=device,
        mlflow=config.engine.mlflow,
        settings=dotted(config.to_dict()),
        observe=functools.partial(context.observe, config.name),
    )
