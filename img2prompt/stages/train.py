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
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

# `ray.train` exports either these or its first version's, by an environment variable.
from ray.train.v2.api.config import (
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)

from img2prompt import runtime
from img2prompt.artifact import CONFIG, Artifact, Draft
from img2prompt.config import EngineConfig, TrainConfig
from img2prompt.data.order import rows_in_share
from img2prompt.data.shards import check_size
from img2prompt.errors import UserError
from img2prompt.model.cost import Cost, cost
from img2prompt.model.plan import layer_plan
from img2prompt.model.precision import compute_dtype
from img2prompt.model.predictor import (
    WEIGHTS,
    build_predictor,
    load_head,
    open_tower,
)
from img2prompt.model.tower import Tower
from img2prompt.stages.batches import total_steps
from img2prompt.stages.checkpoint import (
    Checkpoint,
    CheckpointStore,
    DamagedError,
    History,
    Position,
)
from img2prompt.stages.engine import check_batch, rows_at_once
from img2prompt.stages.faults import own_callbacks, sigterm_asks_to_stop, told_to_users
from img2prompt.stages.ray_worker import CHECKPOINTS, STOP, Inputs, Job, train_worker
from img2prompt.stages.steplog import require_mlflow
from img2prompt.storage import delete_folder, exists, join, read_bytes

logger = logging.getLogger(__name__)

STAGE = "train"
HISTORY = "history.json"
FREE = ("workers", "save_every", "save_seconds", "keep", "skip_nonfinite", "hang_timeout", "mlflow")
"""Settings of the engine that an unfinished run may go on with changed."""
RETRIES = 8
"""Times that dead workers are replaced before a run gives up; a UserError ends it at once."""


def run(
    config: TrainConfig, inputs: Inputs, out: str, callbacks: list[Any] | None = None
) -> Artifact:
    """Train and publish; `callbacks` are Ray Train's, for a search that watches its trials."""
    draft = _begun(config, inputs, out)
    if finished := draft.finished():
        return finished
    began = time.perf_counter()
    _fit(config, inputs, out, callbacks or [])
    return publish(draft, checkpoints(out), time.perf_counter() - began)


def advance(
    config: TrainConfig, inputs: Inputs, out: str, epochs: int, callbacks: list[Any] | None = None
) -> None:
    """Train until `epochs` epochs are complete; `run` goes on from there, and publishes."""
    if not _begun(config, inputs, out).finished():
        _fit(config, inputs, out, callbacks or [], until=epochs)


def _begun(config: TrainConfig, inputs: Inputs, out: str) -> Draft:
    """The run's folder, new or gone on with, once it is told what will be trained."""
    tower = open_tower(config.tower, config.seed)
    made_from = fingerprints(config, inputs, tower)
    able = functools.partial(check, config, inputs, tower)
    draft = Draft.open(out, STAGE, _as_begun(config, out), made_from, able)
    if draft.finished() is None:
        _announce(config, tower, inputs, worker_count(config))
    return draft


def _fit(
    config: TrainConfig, inputs: Inputs, out: str, callbacks: list[Any], until: int = 0
) -> None:
    job = Job(config, inputs, absolute(out), storage(out), until)
    try:
        with sigterm_asks_to_stop(join(storage(out), STOP)):
            _trainer(job, callbacks).fit()
    except TrainingFailedError as error:
        raise told_to_users(error) from error


def _trainer(job: Job, callbacks: list[Any]) -> TorchTrainer:
    """Ray Train runs and replaces the workers; it sees no checkpoint, they keep their own."""
    use_gpu = _has_gpus()
    return TorchTrainer(
        lambda: train_worker(job),
        scaling_config=ScalingConfig(
            num_workers=worker_count(job.config),
            use_gpu=use_gpu,
            resources_per_worker={"GPU": 1} if use_gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=STAGE,
            storage_path=job.work,
            failure_config=FailureConfig(max_failures=RETRIES),
            callbacks=[*callbacks, *own_callbacks()],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _as_begun(config: TrainConfig, out: str) -> TrainConfig:
    """The config with those settings of a run begun in `out` that may change along the way.

    They say how a run is made, not what comes out.
    """
    if not exists(join(out, CONFIG)):
        return config
    begun = json.loads(read_bytes(join(out, CONFIG))).get("engine", {})
    own = {f"engine.{name}": begun[name] for name in FREE if name in begun}
    return config.replace(own)


def fingerprints(config: TrainConfig, inputs: Inputs, tower: Tower) -> dict[str, str]:
    """Of what a run is made from, by name."""
    found = {"tower": tower.base_fingerprint, "shards": inputs.shards.fingerprint}
    if inputs.features is not None and config.plan.frozen_tower:
        found["features"] = inputs.features.fingerprint
    if inputs.start is not None:
        found["start"] = inputs.start.fingerprint
    return found


def worker_count(config: TrainConfig) -> int:
    """Workers of a run: as configured, else one per GPU, or two on CPUs (one without DeepSpeed)."""
    gpus = int(runtime.resources().gpus)
    automatic = 1 if config.engine.kind == "plain" else gpus or 2
    return config.engine.workers or automatic


def _has_gpus() -> bool:
    return runtime.resources().gpus >= 1


def check(config: TrainConfig, inputs: Inputs, tower: Tower) -> None:
    """Refuse (UserError) what could not be trained here."""
    layer_plan(tower.depth, config.plan.lora_rate, config.plan.nfz_rate)
    workers = worker_count(config)
    runtime.require(gpus=workers) if _has_gpus() else runtime.require(cpus=workers)
    check_batch(config, workers)
    require_mlflow(config.engine.mlflow)
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
    total_steps(config, rows_in_share(inputs.shards.counts["train"], config.optim.share))
    if inputs.start is not None:
        head = build_predictor(None, tower.width, config.plan, config.head, config.seed)
        load_head(head, inputs.start)


def _announce(config: TrainConfig, tower: Tower, inputs: Inputs, workers: int) -> None:
    """Say what learns, how many rows there are, and what a row and a worker will cost."""
    plan = layer_plan(tower.depth, config.plan.lora_rate, config.plan.nfz_rate)
    logger.info(
        "%s: %s; %d rows; %d worker(s); %s",
        config.name,
        plan,
        rows_in_share(inputs.shards.counts["train"], config.optim.share),
        workers,
        estimate(config, tower).describe(*share_of_memory(config, workers)),
    )


def estimate(config: TrainConfig, tower: Tower) -> Cost:
    """What a row of this run costs on this cluster."""
    return cost(
        tower.vision.config,
        config.plan,
        config.head,
        half=_in_half(config.engine),
        cached=config.plan.frozen_tower,
    )


def share_of_memory(config: TrainConfig, workers: int) -> tuple[int, int, int]:
    """What decides a worker's memory: its rows at once, the workers, and DeepSpeed's ZeRO stage."""
    zero_stage = 0 if config.engine.kind == "plain" else config.engine.zero_stage
    return rows_at_once(config, workers), workers, zero_stage


def _in_half(engine: EngineConfig) -> bool:
    """Whether workers will compute in 16 bits; the driver may have no GPU itself."""
    if engine.precision == "auto" and _has_gpus():
        return True
    return compute_dtype(engine.precision, torch.device("cpu")) != torch.float32


def storage(out: str) -> str:
    """Where Ray Train and the checkpoints are while a run is not finished."""
    return join(absolute(out), "ray")


def absolute(out: str) -> str:
    """The same folder for every process on this machine."""
    return out if "://" in out else str(Path(out).absolute())


def checkpoints(out: str) -> CheckpointStore:
    """Checkpoints of the run in folder `out`; none once it is finished."""
    return CheckpointStore(join(storage(out), CHECKPOINTS))


def publish(draft: Draft, store: CheckpointStore, seconds: float) -> Artifact:
    """Finish the run in `draft` from its checkpoints, which go then."""
    last = store.newest()
    assert last is not None, "every epoch saves one"
    history = last.position.history
    best, top = _best(store, history)
    draft.write_bytes(WEIGHTS, safetensors.torch.save(dict(best.engine.model)))
    draft.write_bytes(HISTORY, json.dumps(history, indent=2).encode())
    metrics = {"best_epoch": top["epoch"], "val_cosine": top["val_cosine"], "seconds": seconds}
    if last.position.skipped:
        metrics["skipped_batches"] = last.position.skipped
    run = draft.publish(**metrics)
    delete_folder(storage(draft.uri))
    return run


def _best(store: CheckpointStore, history: History) -> tuple[Checkpoint, dict[str, Any]]:
    """Checkpoint and row of the best epoch whose checkpoint is whole."""
    for row in sorted(history, key=lambda row: -row["val_cosine"]):
        name = Position(epoch=row["epoch"]).name
        if name in store.names():
            try:
                return store.read(name), row
            except DamagedError as error:
                logger.warning("%s is damaged (%s): the next best epoch counts", name, error)
    raise UserError(f"{store.uri} holds no whole checkpoint: run the same command again")
