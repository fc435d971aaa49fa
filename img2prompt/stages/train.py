"""Train a probe, a fine-tune or a trial: one stage, different configs.

shards/ (+ features/ for a probe) -> runs/<name>/ with `model.safetensors` (the tensors that
learned, from the epoch with the best validation cosine), `history.json` and `metrics.json`.

Ray Train runs the workers (`worker.Loop`) and replaces them when one dies; they go on from their
newest checkpoint with the very next batch. So does a killed run, which is found by its folder, also
with another number of workers.
"""

import functools
import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import safetensors.torch
import torch
from ray.train import ControllerError, TrainingFailedError, UserCallback, WorkerGroupError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution import context as train_context

# `ray.train` exports either these or its first version's, by an environment variable.
from ray.train.v2.api.config import (
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)

from img2prompt import runtime
from img2prompt.artifact import (
    CONFIG,
    Artifact,
    Draft,
    delete_folder,
    exists,
    join,
    read_bytes,
)
from img2prompt.config import EngineConfig, TrainConfig
from img2prompt.data.shards import FeatureRows, ShardRows, check_size
from img2prompt.errors import UserError
from img2prompt.model.cost import cost
from img2prompt.model.plan import layer_plan
from img2prompt.model.predictor import (
    WEIGHTS,
    Predictor,
    build_predictor,
    load_head,
    load_learned_state,
    open_tower,
)
from img2prompt.model.tower import Tower
from img2prompt.stages.checkpoint import (
    Checkpoint,
    CheckpointStore,
    Progress,
    Saver,
    best_name,
    best_row,
)
from img2prompt.stages.engine import build_engine, check_batch, compute_dtype
from img2prompt.stages.worker import Loop, Place, Rows, total_steps

logger = logging.getLogger(__name__)

STAGE = "train"
HISTORY = "history.json"
FREE = ("workers", "save_every", "keep")
"""Settings of the engine that an unfinished run may go on with changed."""
RETRIES = 3
"""Times that dead workers are replaced before a run gives up."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    shards: Artifact
    features: Artifact | None = None
    """Cached features: needed by a probe, unused by a fine-tune."""
    start: Artifact | None = None
    """Finished run whose head is the start."""


def run(
    config: TrainConfig, inputs: Inputs, out: str, callbacks: list[Any] | None = None
) -> Artifact:
    """Train and publish; `callbacks` are Ray Train's, for a search that watches its trials."""
    tower = open_tower(config.tower, config.seed)
    fingerprints = _fingerprints(config, inputs, tower)
    check = functools.partial(_check, config, inputs, tower)
    draft = Draft.open(out, STAGE, _as_begun(config, out), fingerprints, check)
    if finished := draft.finished():
        return finished
    _announce(config, tower, inputs, worker_count(config))
    began = time.perf_counter()
    try:
        _trainer(config, inputs, out, callbacks or []).fit()
    except TrainingFailedError as error:
        raise _told_to_users(error) from error
    return _publish(draft, checkpoints(out), time.perf_counter() - began)


def _trainer(config: TrainConfig, inputs: Inputs, out: str, callbacks: list[Any]) -> TorchTrainer:
    """Ray Train runs and replaces the workers; it sees no checkpoint, they keep their own."""
    use_gpu = _has_gpus()
    job = {"config": config.to_json(), "inputs": inputs, "checkpoints": checkpoints(out).uri}
    return TorchTrainer(
        train_worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=worker_count(config),
            use_gpu=use_gpu,
            resources_per_worker={"GPU": 1} if use_gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=STAGE,
            storage_path=storage(out),
            failure_config=FailureConfig(max_failures=RETRIES),
            callbacks=[*callbacks, StopOnUserError()],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


class StopOnUserError(UserCallback):
    """Ends a run at the first UserError of a worker: the same would happen to a new worker."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        if told := _user_error(worker_exceptions.values()):
            raise told  # Ray Train never retries an error of a callback


def _as_begun(config: TrainConfig, out: str) -> TrainConfig:
    """The config with those settings of a run begun in `out` that may change along the way.

    They say how a run is made, not what comes out.
    """
    if not exists(join(out, CONFIG)):
        return config
    begun = json.loads(read_bytes(join(out, CONFIG))).get("engine", {})
    own = {f"engine.{name}": begun[name] for name in FREE if name in begun}
    return config.replace(own)


def _fingerprints(config: TrainConfig, inputs: Inputs, tower: Tower) -> dict[str, str]:
    found = {"tower": tower.base_fingerprint, "shards": inputs.shards.fingerprint}
    if inputs.features is not None and config.plan.frozen_tower:
        found["features"] = inputs.features.fingerprint
    if inputs.start is not None:
        found["start"] = inputs.start.fingerprint
    return found


def _told_to_users(error: TrainingFailedError) -> Exception:
    """What a worker had to say to the user, if that is why it stopped; else the error itself."""
    if isinstance(error, ControllerError):
        return _user_error([error.controller_failure]) or error
    assert isinstance(error, WorkerGroupError)
    return _user_error(error.worker_failures.values()) or error


def _user_error(failures: Iterable[BaseException]) -> UserError | None:
    for failure in failures:
        for reason in (failure, failure.__cause__):
            if isinstance(reason, UserError):
                return reason
    return None


def worker_count(config: TrainConfig) -> int:
    """Workers of a run: as configured, else one per GPU, or two on CPUs (one without DeepSpeed)."""
    gpus = int(runtime.resources().gpus)
    automatic = 1 if config.engine.kind == "plain" else gpus or 2
    return config.engine.workers or automatic


def _has_gpus() -> bool:
    return runtime.resources().gpus >= 1


def _check(config: TrainConfig, inputs: Inputs, tower: Tower) -> None:
    """Refuse (UserError) what could not be trained here."""
    layer_plan(tower.depth, config.plan.lora_rate, config.plan.nfz_rate)
    workers = worker_count(config)
    runtime.require(gpus=workers) if _has_gpus() else runtime.require(cpus=workers)
    check_batch(config, workers)
    if not _has_gpus():
        compute_dtype(config.engine.precision, torch.device("cpu"))
    if config.plan.frozen_tower and inputs.features is None:
        raise UserError(f"{config.name} is a probe and reads features: run the features job first")
    for made in filter(None, [inputs.features, inputs.start]):
        made.require_input("shards", inputs.shards)
    if inputs.start and inputs.start.inputs["tower"] != tower.base_fingerprint:
        raise UserError(
            f"{inputs.start.uri} is a head for another tower than {config.tower.weights!r}: "
            "train a probe with the same --tower settings"
        )
    if inputs.features and inputs.features.inputs["tower"] != tower.base_fingerprint:
        raise UserError(
            f"{inputs.features.uri} was made by another tower than {config.tower.weights!r}: "
            "make features with the same --tower settings, in another --out"
        )
    check_size(inputs.shards, tower.size)
    total_steps(config, inputs.shards.counts["train"])
    if inputs.start is not None:
        head = build_predictor(None, tower.width, config.plan, config.head, config.seed)
        load_head(head, inputs.start)


def _announce(config: TrainConfig, tower: Tower, inputs: Inputs, workers: int) -> None:
    """Say what learns, how many rows there are, and what a row and a worker will cost."""
    plan = layer_plan(tower.depth, config.plan.lora_rate, config.plan.nfz_rate)
    estimate = cost(
        tower.vision.config,
        config.plan,
        config.head,
        half=_in_half(config.engine),
        cached=config.plan.frozen_tower,
    )
    zero_stage = 0 if config.engine.kind == "plain" else config.engine.zero_stage
    logger.info(
        "%s: %s; %d rows; %d worker(s); %s",
        config.name,
        plan,
        inputs.shards.counts["train"],
        workers,
        estimate.describe(config.optim.batch_size // workers, workers, zero_stage),
    )


def _in_half(engine: EngineConfig) -> bool:
    """Whether workers will compute in 16 bits; the driver may have no GPU itself."""
    if engine.precision == "auto" and _has_gpus():
        return True
    return compute_dtype(engine.precision, torch.device("cpu")) != torch.float32


def storage(out: str) -> str:
    """Where Ray Train and the checkpoints are while a run is not finished."""
    return join(out if "://" in out else str(Path(out).absolute()), "ray")


def checkpoints(out: str) -> CheckpointStore:
    """Checkpoints of the run in folder `out`; none once it is finished."""
    return CheckpointStore(join(storage(out), "checkpoints"))


def train_worker(job: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    train_context.logger.setLevel(logging.WARNING)  # it logs every report of every rank
    config = TrainConfig.from_json(job["config"])
    inputs: Inputs = job["inputs"]
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    store = CheckpointStore(job["checkpoints"])
    train, val = open_rows(config, inputs, "train"), open_rows(config, inputs, "val")
    model, found = build_model(config, inputs), _going_on(store, place)
    if found is not None:
        load_learned_state(model, dict(found.engine.model), store.uri)
    engine = build_engine(model, config, total_steps(config, len(train)), device)
    if found is not None:
        engine.load(found.engine)
        logger.info("%s: goes on at %s", config.name, found.progress)
    saver = Saver(store, config.engine.keep)

    def save(progress: Progress) -> None:
        state = engine.state()
        if place.rank == 0:
            saver.save(Checkpoint(progress, state))

    loop = Loop(config, engine, train, val, place, save, ray.train.report)
    loop.run(found.progress if found else Progress())
    saver.wait()


def _going_on(store: CheckpointStore, place: Place) -> Checkpoint | None:
    """The newest whole checkpoint; all workers go on from the one that the first has found."""
    found = store.newest() if place.rank == 0 else None
    name = broadcast_from_rank_zero(found and found.progress.name)
    return store.read(name) if name and found is None else found


def open_rows(config: TrainConfig, inputs: Inputs, split: str) -> Rows:
    """Cached features for a probe, pictures for all else."""
    if config.plan.frozen_tower:
        assert inputs.features is not None
        return FeatureRows(inputs.features, inputs.shards, split)
    return ShardRows(inputs.shards, split)


def build_model(config: TrainConfig, inputs: Inputs) -> Predictor:
    """The model at its start: a probe without its tower, a fine-tune with the probe's head."""
    tower = open_tower(config.tower, config.seed)
    width = tower.width
    kept = None if config.plan.frozen_tower else tower
    model = build_predictor(kept, width, config.plan, config.head, config.seed)
    if inputs.start is not None:
        load_head(model, inputs.start)
    return model


def _publish(draft: Draft, store: CheckpointStore, seconds: float) -> Artifact:
    last = store.newest()
    assert last is not None, "every epoch saves one"
    history = last.progress.history
    top = best_row(history)
    best = store.read(best_name(history))
    draft.write_bytes(WEIGHTS, safetensors.torch.save(dict(best.engine.model)))
    draft.write_bytes(HISTORY, json.dumps(history, indent=2).encode())
    metrics = {"best_epoch": top["epoch"], "val_cosine": top["val_cosine"], "seconds": seconds}
    run = draft.publish(**metrics)
    delete_folder(storage(draft.uri))
    return run
