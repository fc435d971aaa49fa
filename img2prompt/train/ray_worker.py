"""What each Ray Train worker does around its loop: opens rows, goes on, saves, and ends well."""

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
from img2prompt.distributed.internals import preemption_notice, quieten_worker_reports
from img2prompt.errors import UserError
from img2prompt.model.cost import cost
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import load_learned_state
from img2prompt.model.towers.build import read_shape
from img2prompt.train.batches import WorkerRank, total_steps
from img2prompt.train.checkpoint import Checkpoint, CheckpointStore, Position, Saver
from img2prompt.train.engines.base import Engine
from img2prompt.train.engines.build import build_engine
from img2prompt.train.health import (
    ENDED,
    SIGTERM,
    AskedToStop,
    FileWatch,
    HangWatchdog,
    NotFiniteError,
    StoppedError,
    Vote,
)
from img2prompt.train.job import TrainJob, build_model, checkpoints, open_rows
from img2prompt.train.loop import Loop
from img2prompt.train.steplog import StepLog
from img2prompt.workspace import RunFolder

logger = logging.getLogger(__name__)

DECODERS = 16
"""Most threads that decode pictures for one GPU; a worker without has one, and no core to spare."""


def train_worker(job: TrainJob) -> None:
    """Train one worker's part, from the newest checkpoint on."""
    quieten_worker_reports()
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    place = WorkerRank(context.get_world_rank(), context.get_world_size())
    cores = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    if device.type == "cpu":
        torch.set_num_threads(cores)
    decoders = 1 if device.type == "cpu" else min(cores, DECODERS)
    try:
        _train(job, place, device, decoders)
    finally:
        ENDED.set()


def _train(job: TrainJob, place: WorkerRank, device: torch.device, decoders: int) -> None:
    config, store = job.config, checkpoints(job.out)
    watch = HangWatchdog(place, config.engine.hang_timeout)
    train, val = (open_rows(config, job.inputs, split, decoders) for split in ("train", "val"))
    model, found = build_model(config, job.inputs), _going_on(store, place)
    if found is not None:
        load_learned_state(model, dict(found.engine.model), store.uri)
    engine = build_engine(model, config, total_steps(config, len(train)), device)
    if found is not None:
        engine.load(found.engine)
        logger.info("%s: goes on at %s", config.name, found.position)
    start = found.position if found else Position()
    keeper = Keeper(config, engine, place, store, RunFolder(job.out).stop_request)
    done = start.epoch * steps_per_epoch(len(train), config.optim.batch_size) + start.step
    log = _log(job, place, device, done)
    hooks = (keeper.save, ray.train.report, keeper.vote, watch.beat, log, job.until)
    loop = Loop(config, engine, train, val, place, *hooks)
    try:
        loop.run(start)
    except (StoppedError, AskedToStop):
        keeper.finish()
        raise
    except NotFiniteError as error:
        keeper.finish()
        raise UserError(f"{error}. The last good checkpoint: {store.last()}") from error
    finally:
        watch.close()
        log.close()
    keeper.finish()


class Keeper:
    """Saves a worker's run, and knows what it has to vote for."""

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        place: WorkerRank,
        store: CheckpointStore,
        stop: str,
    ) -> None:
        self._seconds = config.engine.save_seconds
        self._engine = engine
        self._first = place.rank == 0
        self._saver = Saver(store, config.engine.keep)
        self._asked = FileWatch(stop) if self._first else None
        self._saved = time.monotonic()
        self._notice: PreemptionInfo | None = None

    def save(self, position: Position) -> None:
        state = self._engine.state()
        if self._first:
            self._saver.save(Checkpoint(position, state))
        self._saved = time.monotonic()

    def vote(self) -> Vote:
        late = 0 < self._seconds < time.monotonic() - self._saved or self._is_warned()
        asked = self._asked is not None and self._asked.seen.is_set()
        return Vote(taken=SIGTERM.is_set(), asked=asked, late=late and self._first)

    def _is_warned(self) -> bool:
        """Return True once for each notice that a node will be taken away (`ray drain-node`)."""
        before = self._notice
        self._notice = preemption_notice()
        if self._notice is before or self._notice is None or not self._first:
            return False
        logger.warning("a machine of this run will be taken away: saving")
        return True

    def finish(self) -> None:
        """All workers stay until all is written: Ray Train ends them together."""
        if self._asked is not None:
            self._asked.close()
        self._saver.wait()
        barrier()


def _going_on(store: CheckpointStore, place: WorkerRank) -> Checkpoint | None:
    """The newest whole checkpoint; all workers go on from the one that the first has found."""
    found = store.newest() if place.rank == 0 else None
    name = broadcast_from_rank_zero(found and found.position.name)
    return store.read(name) if name and found is None else found


def _log(job: TrainJob, place: WorkerRank, device: torch.device, done: int) -> StepLog:
    """Written by the first worker."""
    if place.rank > 0:
        return StepLog()
    config = job.config
    half = compute_dtype(config.engine.precision, device) != torch.float32
    a_row = cost(
        read_shape(config.tower),
        config.plan,
        config.head,
        half=half,
        cached=config.plan.frozen_tower,
    )
    return StepLog(
        job.out,
        config.name,
        step=done,
        workers=place.workers,
        flop=a_row.forward + a_row.backward,
        device=device,
        mlflow=config.engine.mlflow,
        settings=dotted(config.to_dict()),
    )
