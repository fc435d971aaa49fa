"""Train a probe, a fine-tune or a trial: one stage, different configs.

shards/ (+ features/ for a probe) -> runs/<name>/ with `model.safetensors` (the tensors that
learned, from the epoch with the best validation cosine), `history.json` and `metrics.json`.

Ray Train runs the workers (`worker.fit`) and restarts them from the last epoch when one dies. A
killed run is found again by its folder and goes on with the next epoch.
"""

import functools
import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import safetensors.torch
import torch
from ray.train import Checkpoint, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution import context as train_context

# `ray.train` exports either these or its first version's, by an environment variable.
from ray.train.v2.api.config import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)

from img2prompt import runtime
from img2prompt.artifact import Artifact, Draft, delete_folder, join
from img2prompt.config import TrainConfig
from img2prompt.data.shards import FeatureRows, ShardRows, check_size
from img2prompt.errors import UserError
from img2prompt.model.plan import layer_plan
from img2prompt.model.predictor import (
    WEIGHTS,
    Predictor,
    build_predictor,
    learned_state,
    load_head,
    open_tower,
)
from img2prompt.model.tower import Tower
from img2prompt.stages.engine import build_engine, check_batch
from img2prompt.stages.worker import History, Place, Rows, fit, total_steps

logger = logging.getLogger(__name__)

STAGE = "train"
HISTORY = "history.json"
WORKERS = "workers"
"""File of a checkpoint: how many workers share its optimiser state."""
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
    draft = Draft.open(out, STAGE, config, fingerprints, check)
    if finished := draft.finished():
        return finished
    workers, use_gpu = worker_count(config), _has_gpus()
    _announce(config, tower, inputs, workers)
    began = time.perf_counter()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config.to_json(), "inputs": inputs},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"GPU": 1} if use_gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=STAGE,
            storage_path=storage(out),
            failure_config=FailureConfig(max_failures=RETRIES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="val_cosine", checkpoint_score_order="max"
            ),
            callbacks=callbacks,
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result = trainer.fit()
    except WorkerGroupError as error:
        raise _told_to_users(error) from error
    checkpoint = result.get_best_checkpoint("val_cosine", "max")
    assert checkpoint is not None, "every epoch reports one"
    return _publish(draft, checkpoint, result.checkpoint or checkpoint, time.perf_counter() - began)


def _fingerprints(config: TrainConfig, inputs: Inputs, tower: Tower) -> dict[str, str]:
    found = {"tower": tower.base_fingerprint, "shards": inputs.shards.fingerprint}
    if inputs.features is not None and config.plan.frozen_tower:
        found["features"] = inputs.features.fingerprint
    if inputs.start is not None:
        found["start"] = inputs.start.fingerprint
    return found


def _told_to_users(error: WorkerGroupError) -> Exception:
    """What a worker had to say to the user, if that is why it stopped; else the error itself."""
    for failure in error.worker_failures.values():
        reason = failure.__cause__ if isinstance(failure.__cause__, UserError) else failure
        if isinstance(reason, UserError):
            return reason
    return error


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
    check_batch(config.optim, workers)
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
    plan = layer_plan(tower.depth, config.plan.lora_rate, config.plan.nfz_rate)
    model = build_predictor(tower, tower.width, config.plan, config.head, config.seed)
    learning = sum(t.numel() for t in model.parameters() if t.requires_grad)
    everything = sum(t.numel() for t in model.parameters())
    logger.info(
        "%s: %s; %.2fM of %.2fM parameters learn; %d rows; %d worker(s)",
        config.name,
        plan,
        learning / 1e6,
        everything / 1e6,
        inputs.shards.counts["train"],
        workers,
    )


def storage(out: str) -> str:
    """Where Ray Train keeps the checkpoints of a run that is not finished."""
    return join(out if "://" in out else str(Path(out).absolute()), "ray")


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
    train, val = open_rows(config, inputs, "train"), open_rows(config, inputs, "val")
    model = build_model(config, inputs)
    engine = build_engine(model, config, total_steps(config, len(train)), device)
    history: History = []
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            history = json.loads((Path(folder) / HISTORY).read_text())
            _check_workers(config, int((Path(folder) / WORKERS).read_text()), place.workers)
            engine.load(Path(folder))
        logger.info("%s: goes on after epoch %d", config.name, len(history))

    def report(history: History) -> None:
        with tempfile.TemporaryDirectory() as folder:
            engine.save(Path(folder))
            if place.rank == 0:
                safetensors.torch.save_file(learned_state(model), Path(folder) / WEIGHTS)
                (Path(folder) / HISTORY).write_text(json.dumps(history, indent=2))
                (Path(folder) / WORKERS).write_text(str(place.workers))
            ray.train.report(history[-1], checkpoint=Checkpoint.from_directory(folder))

    fit(config, engine, train, val, place, history, report)


def _check_workers(config: TrainConfig, before: int, now: int) -> None:
    if before != now:
        raise UserError(
            f"{config.name} was begun with {before} worker(s) and would go on with {now}; its "
            f"optimiser state is shared among {before}: set --engine.workers {before}"
        )


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


def _publish(draft: Draft, best: Checkpoint, last: Checkpoint, seconds: float) -> Artifact:
    with last.as_directory() as folder:
        history = json.loads((Path(folder) / HISTORY).read_text())
    with best.as_directory() as folder:
        draft.write_bytes(WEIGHTS, (Path(folder) / WEIGHTS).read_bytes())
    draft.write_bytes(HISTORY, json.dumps(history, indent=2).encode())
    top = max(history, key=lambda row: row["val_cosine"])
    metrics = {"best_epoch": top["epoch"], "val_cosine": top["val_cosine"], "seconds": seconds}
    run = draft.publish(**metrics)
    delete_folder(join(draft.uri, "ray"))
    return run
