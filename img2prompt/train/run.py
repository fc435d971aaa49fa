"""Train a probe, a fine-tune or a trial: one stage, different configs.

shards/ (+ features/ for a probe) -> runs/<name>/ with `model.safetensors` (the learned tensors of
the epoch with the best validation cosine), `history.json` and `metrics.json`.

Ray Train runs the workers (`loop.Loop`) and replaces them when one dies; they resume from their
newest checkpoint with the next batch. So does a killed run when it is started again with the same
folder, also with another number of workers. A probe in closed form (`ridge.py`) needs no workers
and no checkpoints; a killed one starts over.
"""

import json
import logging
import time
from typing import Any

import safetensors.torch
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from img2prompt.artifact import Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.data.order import rows_in_share
from img2prompt.distributed.internals import (
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from img2prompt.distributed.tasks import map_in_order
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.plan import layer_plan
from img2prompt.model.prompt_model import WEIGHTS
from img2prompt.model.tensor_checks import require_finite_weights
from img2prompt.model.towers.base import TowerShape
from img2prompt.model.towers.build import read_shape
from img2prompt.storage import absolute, delete_folder
from img2prompt.train.checkpoint import (
    SCORE,
    Checkpoint,
    CheckpointStore,
    DamagedError,
    History,
    Position,
    best_weights,
)
from img2prompt.train.estimate import estimate, memory_arguments
from img2prompt.train.job import TrainInputs, TrainJob, checkpoints
from img2prompt.train.preflight import (
    FREE,
    adopt_config,
    check,
    check_resumable,
    fingerprints,
    has_gpus,
    worker_count,
)
from img2prompt.train.ray_callbacks import own_callbacks, sigterm_requests_stop, to_user_error
from img2prompt.train.ray_worker import train_worker
from img2prompt.train.recipe import validated_weights
from img2prompt.train.ridge import solve_probe
from img2prompt.workspace import RunFolder, Stage

logger = logging.getLogger(__name__)

HISTORY = "history.json"
SPREAD_ROWS = 200_000
"""Pictures from which on tasks share the work of a probe in closed form. Fewer take less than a
minute on one core, at 1,024 features."""


def run(
    config: TrainConfig,
    inputs: TrainInputs,
    out: str,
    callbacks: list[Any] | None = None,
    *,
    resume_anyway: bool = False,
) -> Artifact:
    """Train and publish; `callbacks` are Ray Train's, for a search that watches its trials.

    An unfinished run in `out` with the same config resumes. With `resume_anyway` it also resumes
    with another config, if model, batch size, recipe and inputs are the same; the artifact keeps
    both configs.
    """
    draft = _open_draft(config, inputs, out, resume_anyway)
    if finished := draft.finished():
        return finished
    began = time.perf_counter()
    if config.optim.solver == "ridge":
        return _solve(draft, config, inputs, began)
    _fit(config, inputs, out, callbacks or [])
    return publish(draft, config, checkpoints(out), time.perf_counter() - began)


def advance(
    config: TrainConfig,
    inputs: TrainInputs,
    out: str,
    epochs: int,
    callbacks: list[Any] | None = None,
) -> None:
    """Train until `epochs` epochs are complete; `run` resumes from there, and publishes."""
    draft = _open_draft(config, inputs, out)  # which keeps other jobs out as long as it lives
    if not draft.finished():
        _fit(config, inputs, out, callbacks or [], until=epochs)


def _open_draft(
    config: TrainConfig, inputs: TrainInputs, out: str, resume_anyway: bool = False
) -> Draft:
    """Check a run and open its folder, new or to resume; log what will be trained."""
    shape, made_from = read_shape(config.tower), fingerprints(config, inputs)
    if resume_anyway:
        check_resumable(config, inputs, out, checkpoints(out))
        adopt_config(config, made_from, out)

    def check_run() -> None:
        check(config, inputs, shape, made_from["tower"])

    draft = Draft.open(out, Stage.TRAIN, config, made_from, check_run, free=FREE)
    if draft.finished() is None and config.optim.solver == "adamw":
        _announce(config, shape, inputs, worker_count(config))
    return draft


def _fit(
    config: TrainConfig, inputs: TrainInputs, out: str, callbacks: list[Any], until: int = 0
) -> None:
    job = TrainJob(config, inputs, absolute(out), until)
    try:
        with sigterm_requests_stop(RunFolder(out).stop_request):
            _trainer(job, callbacks).fit()
    except TrainingFailedError as error:
        raise to_user_error(error) from error


def _solve(draft: Draft, config: TrainConfig, inputs: TrainInputs, began: float) -> Artifact:
    """Solve a probe in closed form and publish it; with many rows, in tasks on all workers."""
    spread = map if inputs.shards.counts["train"] < SPREAD_ROWS else map_in_order
    result = solve_probe(config.optim, inputs, spread)
    require_finite_weights(result.state, f"{config.name}, solved in closed form")
    draft.write_bytes(WEIGHTS, safetensors.torch.save(dict(result.state)))
    draft.write_bytes(HISTORY, json.dumps(result.history, indent=2).encode())
    run = draft.publish(**result.best, seconds=time.perf_counter() - began)
    delete_folder(RunFolder(draft.uri).work)
    return run


def _trainer(job: TrainJob, callbacks: list[Any]) -> TorchTrainer:
    """Return Ray Train's trainer. Workers write their own checkpoints, unseen by it."""
    use_gpu, engine, most = has_gpus(), job.config.engine, worker_count(job.config)
    return TorchTrainer(
        lambda: train_worker(job),
        scaling_config=ScalingConfig(
            num_workers=(engine.min_workers, most) if engine.min_workers else most,
            elastic_resize_monitor_interval_s=engine.resize_seconds,
            use_gpu=use_gpu,
            resources_per_worker={"GPU": 1} if use_gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=Stage.TRAIN,
            storage_path=RunFolder(job.out).work,
            failure_config=FailureConfig(max_failures=-1),  # a callback limits them
            callbacks=[*callbacks, *own_callbacks(checkpoints(job.out))],
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _announce(config: TrainConfig, shape: TowerShape, inputs: TrainInputs, workers: int) -> None:
    """Log the layer plan, the number of rows, and the predicted cost of a row and a worker."""
    plan = layer_plan(shape.depth, config.plan.lora_rate, config.plan.nfz_rate)
    logger.info(
        "%s: %s; %d rows; %d worker(s); %s",
        config.name,
        plan,
        rows_in_share(inputs.shards.counts["train"], config.optim.share),
        workers,
        estimate(config, shape).describe(*memory_arguments(config, workers)),
    )


def publish(draft: Draft, config: TrainConfig, store: CheckpointStore, seconds: float) -> Artifact:
    """Finish the run in `draft` from its checkpoints, then delete them.

    The published weights are those with the best validation cosine of all epochs: the model's own,
    or another set that the recipe validates, which `metrics.json` names.
    """
    draft.require_lease()
    last = store.newest()
    assert last is not None, "every epoch saves one"
    history = last.position.history
    best, row = _best(store, history)
    weights = best_weights(row)
    tensors = validated_weights(config, best, weights)
    require_finite_weights(tensors, f"{store.uri}, the best epoch {row['epoch']}")
    draft.write_bytes(WEIGHTS, safetensors.torch.save(dict(tensors)))
    draft.write_bytes(HISTORY, json.dumps(history, indent=2).encode())
    metrics = {"best_epoch": row["epoch"], SCORE: row[SCORE], "seconds": seconds}
    metrics["weights"] = weights
    if last.position.skipped:
        metrics["skipped_batches"] = last.position.skipped
    run = draft.publish(**metrics)
    delete_folder(RunFolder(draft.uri).work)
    return run


def _best(store: CheckpointStore, history: History) -> tuple[Checkpoint, dict[str, Any]]:
    """Return checkpoint and history row of the best epoch whose checkpoint is whole."""
    for row in sorted(history, key=lambda row: -row[SCORE]):
        name = Position(epoch=row["epoch"]).name
        if name in store.names():
            try:
                return store.read(name), row
            except DamagedError as error:
                logger.warning("%s is damaged (%s): trying the next best epoch", name, error)
    raise UserError(f"{store.uri} contains no whole checkpoint: run the same command again")
