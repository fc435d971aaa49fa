"""A Ray Train worker: open the rows, resume, run the loop, save, and end together."""

import functools
import logging
import os
import time

import ray.train
import torch
from ray.train import PreemptionInfo
from ray.train.collective import barrier, broadcast_from_rank_zero

from img2prompt.config.base import dotted
from img2prompt.config.train import TrainConfig
from img2prompt.data.order import steps_per_epoch
from img2prompt.distributed import metrics
from img2prompt.distributed.internals import preemption_notice, quieten_worker_reports
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
    ENDED,
    SIGTERM,
    FileWatch,
    HangWatchdog,
    NonFiniteLossError,
    PreemptedError,
    StopRequestedError,
    Vote,
)
from img2prompt.train.job import TrainJob, build_model, checkpoints, open_rows
from img2prompt.train.loop import Loop
from img2prompt.train.recipe import Recipe, build_recipe
from img2prompt.train.steplog import StepLog
from img2prompt.workspace import RunFolder

logger = logging.getLogger(__name__)

DECODERS = 16
"""Most threads that decode pictures for one GPU. A CPU worker has one: its cores are in use."""


def train_worker(job: TrainJob) -> None:
    """Train one worker's part, starting from the newest checkpoint."""
    quieten_worker_reports()
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    worker = WorkerRank(context.get_world_rank(), context.get_world_size())
    cores = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    if device.type == "cpu":
        torch.set_num_threads(cores)
    decoders = 1 if device.type == "cpu" else min(cores, DECODERS)
    try:
        _train(job, worker, device, decoders)
    finally:
        ENDED.set()


def _train(job: TrainJob, worker: WorkerRank, device: torch.device, decoders: int) -> None:
    config, store = job.config, checkpoints(job.out)
    watchdog = HangWatchdog(worker, config.engine.hang_timeout)
    train, val = (open_rows(config, job.inputs, split, decoders) for split in ("train", "val"))
    model, checkpoint = build_model(config, job.inputs), _newest_checkpoint(store, worker)
    if checkpoint is not None:
        load_learned_state(model, dict(checkpoint.engine.model), store.uri)
    engine = build_engine(model, config, total_steps(config, len(train)), device)
    recipe = build_recipe(config)
    if checkpoint is not None:
        engine.load(checkpoint.engine)
        recipe.load(checkpoint.recipe)
        logger.info("%s: resumes at %s", config.name, checkpoint.position)
    start = checkpoint.position if checkpoint else Position()
    stop_file = RunFolder(job.out).stop_request
    writer = CheckpointWriter(config, engine, recipe, worker, store, stop_file)
    done = start.epoch * steps_per_epoch(len(train), config.optim.batch_size) + start.step
    log = _log(job, worker, device, done)
    loop = Loop(
        config=config,
        engine=engine,
        recipe=recipe,
        train=train,
        val=val,
        worker=worker,
        save=writer.save,
        report=ray.train.report,
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
        watchdog.close()
        log.close()
    writer.finish()


class CheckpointWriter:
    """Saves a worker's run, and votes for saving and stopping it."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        recipe: Recipe,
        worker: WorkerRank,
        store: CheckpointStore,
        stop_file: str,
    ) -> None:
        self._seconds = config.engine.save_seconds
        self._engine = engine
        self._recipe = recipe
        self._is_first = worker.rank == 0
        self._saver = Saver(store, config.engine.keep)
        self._stop_file = FileWatch(stop_file) if self._is_first else None
        self._saved_at = time.monotonic()
        self._notice: PreemptionInfo | None = None

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
        self._notice = preemption_notice()
        if self._notice is before or self._notice is None or not self._is_first:
            return False
        logger.warning("a machine of this run will be taken away: saving a checkpoint")
        return True

    def finish(self) -> None:
        """Wait on all workers until everything is written: Ray Train ends them together."""
        if self._stop_file is not None:
            self._stop_file.close()
        self._saver.wait()
        barrier()


def _newest_checkpoint(store: CheckpointStore, worker: WorkerRank) -> Checkpoint | None:
    """Return the newest whole checkpoint; all workers resume from the one that rank 0 read."""
    checkpoint = store.newest() if worker.rank == 0 else None
    name = broadcast_from_rank_zero(checkpoint and checkpoint.position.name)
    return store.read(name) if name and checkpoint is None else checkpoint


def _log(job: TrainJob, worker: WorkerRank, device: torch.device, done: int) -> StepLog:
    """Return the log of the run; only that of the first worker writes."""
    if worker.rank > 0:
        return StepLog()
    config = job.config
    half = compute_dtype(config.engine.precision, device) != torch.float32
    a_row = row_cost(config, read_shape(config.tower), half=half)
    return StepLog(
        job.out,
        config.name,
        step=done,
        workers=worker.workers,
        flop=a_row.forward + a_row.backward,
        device=device,
        mlflow=config.engine.mlflow,
        settings=dotted(config.to_dict()),
        observe=functools.partial(metrics.record_line, config.name),
    )
