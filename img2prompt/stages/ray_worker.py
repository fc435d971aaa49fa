"""What each Ray Train worker does around its loop: opens rows, goes on, saves, and ends well."""

import logging
import os
import time
from dataclasses import dataclass

import ray.train
import torch
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2.api.preemption import PreemptionInfo

from img2prompt.artifact import Artifact
from img2prompt.config import TrainConfig
from img2prompt.config.base import dotted
from img2prompt.data.order import steps_per_epoch
from img2prompt.data.shards import FeatureRows, ShardRows
from img2prompt.errors import UserError
from img2prompt.model.cost import cost
from img2prompt.model.precision import compute_dtype
from img2prompt.model.predictor import (
    Predictor,
    build_predictor,
    load_head,
    load_learned_state,
    open_tower,
)
from img2prompt.stages.batches import Place, Rows, SomeRows, total_steps
from img2prompt.stages.checkpoint import Checkpoint, CheckpointStore, Position, Saver
from img2prompt.stages.engine import Engine, build_engine
from img2prompt.stages.health import (
    ENDED,
    SIGTERM,
    AskedToStop,
    FileWatch,
    NotFiniteError,
    StoppedError,
    Vote,
    Watch,
)
from img2prompt.stages.steplog import StepLog
from img2prompt.stages.worker import Loop
from img2prompt.storage import join

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
STOP = "stop/asked"
"""A file of this name beside the checkpoints asks a run to save and end."""
DECODERS = 16
"""Most threads that decode pictures for one GPU; a worker without has one, and no core to spare."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    shards: Artifact
    features: Artifact | None = None
    """Cached features: needed by a probe, unused by a fine-tune."""
    start: Artifact | None = None
    """Finished run whose head is the start."""


@dataclass(frozen=True)
class Job:
    """What all workers are told."""

    config: TrainConfig
    inputs: Inputs
    out: str
    """Folder of the run."""
    work: str
    """Folder of what is needed until the run is finished."""
    until: int = 0
    """Epochs after which to pause; 0: none."""


def train_worker(job: Job) -> None:
    """Train one worker's part, from the newest checkpoint on."""
    train_context.logger.setLevel(logging.WARNING)  # it logs every report of every rank
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    place = Place(context.get_world_rank(), context.get_world_size())
    cores = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    if device.type == "cpu":
        torch.set_num_threads(cores)
    decoders = 1 if device.type == "cpu" else min(cores, DECODERS)
    try:
        _train(job, place, device, decoders)
    finally:
        ENDED.set()


def _train(job: Job, place: Place, device: torch.device, decoders: int) -> None:
    config, store = job.config, CheckpointStore(join(job.work, CHECKPOINTS))
    watch = Watch(place, config.engine.hang_timeout)
    train, val = (open_rows(config, job.inputs, split, decoders) for split in ("train", "val"))
    model, found = build_model(config, job.inputs), _going_on(store, place)
    if found is not None:
        load_learned_state(model, dict(found.engine.model), store.uri)
    engine = build_engine(model, config, total_steps(config, len(train)), device)
    if found is not None:
        engine.load(found.engine)
        logger.info("%s: goes on at %s", config.name, found.position)
    start = found.position if found else Position()
    keeper = Keeper(config, engine, place, store, join(job.work, STOP))
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
        self, config: TrainConfig, engine: Engine, place: Place, store: CheckpointStore, stop: str
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
        """Once for each notice that a machine is about to be taken away (`ray drain-node`).

        Ray Train's own `get_preemption_info` would wait for all workers in every step.
        """
        before = self._notice
        self._notice = train_context.get_train_context().preemption_context.preemption_info
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


def _going_on(store: CheckpointStore, place: Place) -> Checkpoint | None:
    """The newest whole checkpoint; all workers go on from the one that the first has found."""
    found = store.newest() if place.rank == 0 else None
    name = broadcast_from_rank_zero(found and found.position.name)
    return store.read(name) if name and found is None else found


def open_rows(config: TrainConfig, inputs: Inputs, split: str, threads: int = 1) -> Rows:
    """Cached features for a probe; pictures for all else, decoded in so many threads.

    Of training rows the config's share.
    """
    if config.plan.frozen_tower:
        assert inputs.features is not None
        rows: Rows = FeatureRows(inputs.features, inputs.shards, split)
    else:
        rows = ShardRows(inputs.shards, split, threads)
    share = config.optim.share
    return SomeRows(rows, share, config.seed) if split == "train" and share < 1 else rows


def build_model(config: TrainConfig, inputs: Inputs) -> Predictor:
    """The model at its start: a probe without its tower, a fine-tune with the probe's head."""
    tower = open_tower(config.tower, config.seed)
    width = tower.width
    kept = None if config.plan.frozen_tower else tower
    model = build_predictor(kept, width, config.plan, config.head, config.seed)
    if inputs.start is not None:
        load_head(model, inputs.start)
    return model


def _log(job: Job, place: Place, device: torch.device, done: int) -> StepLog:
    """Written by the first worker."""
    if place.rank > 0:
        return StepLog()
    config = job.config
    tower = open_tower(config.tower, config.seed)
    half = compute_dtype(config.engine.precision, device) != torch.float32
    a_row = cost(
        tower.vision.config,
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
