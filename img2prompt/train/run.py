"""Train a probe, a fine-tune or a trial: one stage, different configs.

shards/ (+ features/ for a probe) -> runs/<name>/ with `model.safetensors` (the learned tensors of
the epoch with the best validation cosine), `history.json` and `metrics.json`.

Ray Train runs the workers (`worker.py`, `loop.Loop`) and replaces them when one dies; they resume
from their newest checkpoint with the next batch. So does a killed run when it is started again with
the same folder, also with another number of workers. A short run of one worker, such as a probe,
runs in this process: starting Ray and Ray Train would take longer. Both give the same weights. A
probe in closed form (`ridge.py`) needs no workers and no checkpoints; a killed one starts over.
"""

import json
import logging
import posixpath
import time
from typing import Any

import safetensors.torch

from img2prompt.artifact import Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.data.order import rows_in_share
from img2prompt.distributed.placement import cluster_is_named
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.lease import KEEPER
from img2prompt.model.plan import layer_plan
from img2prompt.model.prompt_model import WEIGHTS
from img2prompt.model.tensor_checks import require_finite_weights
from img2prompt.model.towers.base import TowerShape
from img2prompt.model.towers.build import read_shape
from img2prompt.signals import StopSignals, run_until_stopped
from img2prompt.storage import absolute, delete_folder, write_bytes
from img2prompt.train.checkpoint import (
    SCORE,
    Checkpoint,
    CheckpointStore,
    DamagedError,
    History,
    Position,
    best_weights,
)
from img2prompt.train.estimate import estimate, memory_arguments, run_flop
from img2prompt.train.job import TrainInputs, TrainJob, checkpoints
from img2prompt.train.preflight import (
    FREE,
    adopt_config,
    check,
    check_resumable,
    fingerprints,
    worker_count,
)
from img2prompt.train.recipe import validated_weights
from img2prompt.train.ridge import solve_probe
from img2prompt.train.worker import OneWorker, train_worker
from img2prompt.workspace import RunFolder, Stage

logger = logging.getLogger(__name__)

HISTORY = "history.json"
SPREAD_ROWS = 200_000
"""Pictures from which on tasks share the work of a probe in closed form. Fewer take less than a
minute on one core, at 1,024 features."""
IN_PROCESS_FLOP = 1e13
"""FLOP of a whole run of one worker up to which it runs in this process: minutes on one core. A
longer run gets Ray Train, which replaces a worker that dies."""


def run(
    config: TrainConfig,
    inputs: TrainInputs,
    out: str,
    callbacks: list[Any] | None = None,
    *,
    at_once: int = 1,
    resume_anyway: bool = False,
) -> Artifact:
    """Train and publish; `callbacks` are Ray Train's, for a search that watches its trials.

    `at_once` runs share each machine.

    An unfinished run in `out` with the same config resumes. With `resume_anyway` it also resumes
    with another config, if model, batch size, recipe and inputs are the same; the artifact keeps
    both configs.
    """
    in_process = not needs_cluster(config, inputs, callbacks)
    draft = _open_draft(config, inputs, out, in_process, resume_anyway)
    if finished := draft.finished():
        return finished
    began = time.perf_counter()
    if config.optim.solver == "ridge":
        return _solve(draft, config, inputs, began)
    job = TrainJob(config, inputs, absolute(out), at_once=at_once)
    _fit(job, callbacks or [], in_process)
    return publish(draft, config, checkpoints(out), time.perf_counter() - began)


def needs_cluster(
    config: TrainConfig, inputs: TrainInputs, callbacks: list[Any] | None = None
) -> bool:
    """Return True unless the run is one of few rows or one short worker, and runs in this process.

    Callbacks are Ray Train's and need it. So does every run of epochs where RAY_ADDRESS names a
    cluster. A probe in closed form needs one from SPREAD_ROWS pictures on, named or not.
    """
    if config.optim.solver == "ridge":
        return inputs.shards.counts["train"] >= SPREAD_ROWS
    if callbacks or cluster_is_named() or config.engine.kind != "plain":
        return True
    return run_flop(config, read_shape(config.tower), inputs.shards.counts) > IN_PROCESS_FLOP


def advance(
    config: TrainConfig,
    inputs: TrainInputs,
    out: str,
    epochs: int,
    callbacks: list[Any] | None = None,
    *,
    at_once: int = 1,
) -> None:
    """Train until `epochs` epochs are complete; `run` resumes from there, and publishes."""
    in_process = not needs_cluster(config, inputs, callbacks)
    draft = _open_draft(config, inputs, out, in_process)  # it keeps other jobs out while it lives
    if not draft.finished():
        job = TrainJob(config, inputs, absolute(out), epochs, at_once)
        _fit(job, callbacks or [], in_process)


def _open_draft(
    config: TrainConfig,
    inputs: TrainInputs,
    out: str,
    in_process: bool,
    resume_anyway: bool = False,
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
        _announce(config, shape, inputs, 0 if in_process else worker_count(config))
    return draft


def _fit(job: TrainJob, callbacks: list[Any], in_process: bool) -> None:
    stop_file = RunFolder(job.out).stop_request
    delete_folder(posixpath.dirname(stop_file))

    def save() -> None:
        KEEPER.require(job.out)  # the file would stop the job that has taken over
        write_bytes(stop_file, b"")

    if in_process:
        with StopSignals(save):
            train_worker(job, OneWorker())
        return
    from img2prompt.train import ray_run  # imports Ray Train, which takes seconds

    run_until_stopped(lambda: ray_run.fit(job, callbacks), save)


def _solve(draft: Draft, config: TrainConfig, inputs: TrainInputs, began: float) -> Artifact:
    """Solve a probe in closed form and publish it; with many rows, in tasks on all workers."""
    spread: Any = map
    if needs_cluster(config, inputs):
        from img2prompt.distributed.tasks import map_in_order as spread

    result = solve_probe(config.optim, inputs, spread)
    require_finite_weights(result.state, f"{config.name}, solved in closed form")
    draft.write_bytes(WEIGHTS, safetensors.torch.save(dict(result.state)))
    draft.write_bytes(HISTORY, json.dumps(result.history, indent=2).encode())
    run = draft.publish(**result.best, seconds=time.perf_counter() - began)
    delete_folder(RunFolder(draft.uri).work)
    return run


def _announce(config: TrainConfig, shape: TowerShape, inputs: TrainInputs, workers: int) -> None:
    """Log the layer plan, the number of rows, and the predicted cost of a row and a worker.

    `workers` is 0 in this process.
    """
    plan = layer_plan(shape.depth, config.plan.lora_rate, config.plan.nfz_rate)
    logger.info(
        "%s: %s; %s: %d rows; %s",
        config.name,
        plan,
        f"{workers} worker(s)" if workers else "in this process",
        rows_in_share(inputs.shards.counts["train"], config.optim.share),
        estimate(config, shape).describe(*memory_arguments(config, max(1, workers))),
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
