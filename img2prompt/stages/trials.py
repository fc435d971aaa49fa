"""Trials of a search under Ray Tune: which have ended, and running those that have not.

A trial is a training run in a folder of its own, and the folders say how far a search has come:
finished and stopped trials are not run again, others go on after their last epoch. Tune's own
restore is not used: it forgets what its scheduler had seen and up to ten seconds of results, and
keeps the concurrency of the cluster that was.

Tune cannot see the workers that a trial's Ray Train run starts, so trials are limited to those that
fit the cluster at once; else they would wait for each other.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from img2prompt import runtime
from img2prompt.artifact import Artifact
from img2prompt.config import SearchConfig, TrainConfig
from img2prompt.errors import UserError
from img2prompt.stages import train
from img2prompt.stages.checkpoint import History
from img2prompt.storage import exists, join, read_bytes, write_bytes

METRIC = "val_cosine"
STOPPED = "stopped.json"
"""In the folder of a trial that was stopped early: its epochs."""
DRIVER_CPUS = 0.01
"""A trial only waits for its workers."""
TUNE = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in trials as elsewhere
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search, not only Tune's part of it
}


@dataclass(frozen=True)
class Job:
    """One trial."""

    config: TrainConfig
    inputs: train.Inputs
    folder: str
    """Of its training run."""


def ended(folder: str) -> History:
    """Epochs of a trial that finished or was stopped; empty: it has to run."""
    if exists(join(folder, STOPPED)):
        return json.loads(read_bytes(join(folder, STOPPED)))
    try:
        return json.loads(read_bytes(Artifact.load(folder, train.STAGE).path(train.HISTORY)))
    except UserError:  # not begun, or not finished
        return []


def run(config: SearchConfig, jobs: Mapping[str, Job], folder: str) -> dict[str, str]:
    """Run the trials that have not ended; returns the reasons of those that failed, by name.

    Tune's tables and TensorBoard files go to `folder`/tune.
    """
    past = {name: history for name, job in jobs.items() if (history := ended(job.folder))}
    pending = [name for name in jobs if name not in past]
    if not pending:
        return {}

    def trial(space: dict[str, str]) -> None:
        job = jobs[space["name"]]
        for row in _trained(job.folder):
            tune.report(row)
        train.run(job.config, job.inputs, job.folder, callbacks=[TuneReportCallback()])

    os.environ.update(TUNE)
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": DRIVER_CPUS}),
        param_space={"name": tune.grid_search(pending)},
        tune_config=tune.TuneConfig(
            scheduler=_scheduler(config, past),
            max_concurrent_trials=concurrent_trials(config),
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder if "://" in folder else str(Path(folder).absolute()),
            failure_config=tune.FailureConfig(max_failures=1),  # its node may have died
            callbacks=[_Stops(jobs)],
            verbose=1,
        ),
    )
    return _reasons(tuner.fit())


def _name(trial: Trial) -> str:
    return trial.config["name"]


def _trained(folder: str) -> History:
    """Epochs after which the run in this folder goes on."""
    checkpoint = train.checkpoints(folder).newest()
    return checkpoint.position.history if checkpoint else []


class _Stops(tune.Callback):
    """Notes in a trial's folder that it was stopped, and after which epochs."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self.jobs = jobs
        self.epochs: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in jobs}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        row = {key: result[key] for key in ("epoch", "train_loss", METRIC, "rows_per_second")}
        self.epochs[_name(trial)][row["epoch"]] = row

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        job, history = self.jobs[_name(trial)], list(self.epochs[_name(trial)].values())
        if history and history[-1]["epoch"] < job.config.optim.epochs:
            write_bytes(join(job.folder, STOPPED), json.dumps(history, indent=2).encode())


def _scheduler(config: SearchConfig, past: Mapping[str, History]) -> ASHAScheduler | None:
    """Stops weak trials, measured against those of an earlier process too.

    Never at the last epoch: a trial that got there publishes its run.
    """
    last = config.base.optim.epochs
    if config.grace_epochs >= last:
        return None
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        grace_period=config.grace_epochs,
        max_t=last - 1,
        reduction_factor=config.reduction,
        stop_last_trials=False,
    )
    runner: Any = None  # it has no use for one
    for name, history in past.items():
        trial: Any = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(runner, trial)
        for row in history:
            scheduler.on_trial_result(runner, trial, row)
    return scheduler


def concurrent_trials(config: SearchConfig) -> int:
    """Trials whose drivers and workers all fit the cluster at once; 0: not even one does.

    On CPUs a driver's share costs the workers a whole CPU: what is left of it is too small for one.
    """
    there, workers = runtime.resources(), train.worker_count(config.base)
    fit = int(there.gpus // workers if there.gpus >= 1 else there.cpus // (workers + 1))
    return min(config.concurrent or fit, fit)


def require_room(config: SearchConfig) -> None:
    """A cluster that is too small for one trial is a UserError: it would wait without end."""
    workers = train.worker_count(config.base)
    if runtime.resources().gpus >= 1:
        runtime.require(cpus=1, gpus=workers)
    else:
        runtime.require(cpus=workers + 1)


def _reasons(results: tune.ResultGrid) -> dict[str, str]:
    reasons = {}
    for result in results:
        if result.error is not None:
            assert result.config is not None
            cause = getattr(result.error, "cause", None) or result.error
            reasons[result.config["name"]] = f"{type(cause).__name__}: {cause}"
    return reasons
