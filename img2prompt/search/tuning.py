"""Running trials under Ray Tune.

Tune's own restore is not used: it forgets what its scheduler had seen and up to ten seconds of
results, and keeps the concurrency of the cluster that was.

Tune cannot see the workers that a trial's Ray Train run starts, so trials are limited to those that
fit the cluster at once; else they would wait for each other.
"""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.state import list_placement_groups
from ray.util.state.exception import RayStateApiException

from img2prompt.config.search import SearchConfig
from img2prompt.distributed import cluster
from img2prompt.distributed.internals import placement_group_from_id
from img2prompt.search.budget import LIMIT
from img2prompt.search.propose import Listed
from img2prompt.search.schedule import Rungs
from img2prompt.search.trials import TrialJob, clear, outcome, stop
from img2prompt.search.watch import SearchWatch
from img2prompt.storage import absolute
from img2prompt.train import run as train
from img2prompt.train.preflight import worker_count

logger = logging.getLogger(__name__)

TABLES = "tune"
"""Folder of Tune's tables and of the TensorBoard files of all trials."""
DRIVER_CPUS = 0.01
"""A trial only waits for its workers."""
RELEASE_S = 60.0
"""Within which the workers of stopped trials must have left."""
TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the search has tables of its own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search, not only Tune's part of it
}


def run(
    config: SearchConfig,
    jobs: Mapping[str, TrialJob],
    proposals: Listed,
    rungs: Rungs,
    watch: SearchWatch,
    folder: str,
    pauses: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Run what is proposed; returns the reasons of those that failed, by name.

    `pauses`: epochs after which trials leave their runs to be gone on with. Tune's tables and
    TensorBoard files, with all settings as HParams, go to `folder`/tune.
    """
    pauses = pauses or {}

    def trial(space: dict[str, Any]) -> None:
        job, until = jobs[space["name"]], pauses.get(space["name"], 0)
        for row in outcome(job).epochs:
            tune.report(row)
        if until:
            train.advance(job.config, job.inputs, job.folder, until, [TuneReportCallback()])
        else:
            train.run(job.config, job.inputs, job.folder, [TuneReportCallback()])

    os.environ.update(TUNE)
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until the proposals end
            search_alg=proposals,
            scheduler=rungs,
            max_concurrent_trials=concurrent_trials(config),
            # A new trial in the process of the last one saves seconds of imports. One that is
            # stopped must lose its process: its workers leave with it.
            reuse_actors=not rungs.may_stop,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=TABLES,
            storage_path=absolute(folder),
            failure_config=tune.FailureConfig(max_failures=1),  # its node may have died
            callbacks=[watch, _Stops(jobs, rungs)],
            verbose=0,
        ),
    )
    before = _held()
    with watch:
        results = tuner.fit()
    _release(before)
    return _reasons(results)


def _name(trial: Trial) -> str:
    return trial.config["name"]


class _Stops(tune.Callback):
    """Notes in a trial's folder that it was stopped, and after which epochs."""

    def __init__(self, jobs: Mapping[str, TrialJob], rungs: Rungs) -> None:
        self._jobs = jobs
        self._rungs = rungs
        self._epochs: dict[str, dict[int, dict[str, Any]]] = {}
        self._kept: dict[str, float] = {}
        """When trials were stopped whose checkpoints are still there."""

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        row = {key: result[key] for key in ("epoch", "train_loss", "val_cosine", "rows_per_second")}
        self._epochs.setdefault(_name(trial), {})[row["epoch"]] = row
        for name in [n for n, at in self._kept.items() if time.monotonic() > at + RELEASE_S]:
            clear(self._jobs[name])
            del self._kept[name]

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        name = _name(trial)
        reason = self._rungs.reasons.get(name, "")
        if reason not in ("", LIMIT):  # with more hours it may go on
            stop(self._jobs[name], list(self._epochs[name].values()), reason)
            self._kept[name] = time.monotonic()


def concurrent_trials(config: SearchConfig) -> int:
    """Trials whose drivers and workers all fit the cluster at once; 0: not even one does.

    On CPUs a driver's share costs the workers a whole CPU: what is left of it is too small for one.
    """
    there, workers = cluster.resources(), worker_count(config.base)
    fit = int(there.gpus // workers if there.gpus >= 1 else there.cpus // (workers + 1))
    return min(config.concurrent or fit, fit)


def require_room(config: SearchConfig) -> None:
    """A cluster that is too small for one trial is a UserError: it would wait without end."""
    workers = worker_count(config.base)
    if cluster.resources().gpus >= 1:
        cluster.require(cpus=1, gpus=workers)
    else:
        cluster.require(cpus=workers + 1)


def _held() -> set[str]:
    """Placement groups of this job that hold resources or wait for them, as far as Ray tells."""
    job = ray.get_runtime_context().get_job_id()
    filters: Any = [("creator_job_id", "=", job), ("state", "!=", "REMOVED")]
    try:
        return {group.placement_group_id for group in list_placement_groups(filters=filters)}
    except RayStateApiException as error:
        logger.warning("Ray does not tell which placement groups there are: %s", error)
        return set()


def _release(before: set[str]) -> None:
    """Wait until the workers of stopped trials have left, who might still write checkpoints.

    What they still hold after RELEASE_S is taken from them. That was seen once: the trial had ended
    and its workers were gone, but its idle controller lived on, so that Ray Train's own cleaner
    left the group alone, and the next stage waited for its CPUs.
    """
    deadline = time.monotonic() + RELEASE_S
    while (left := _held() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    for key in left:
        logger.warning("a stopped trial still holds %s after %.0f s: removed", key, RELEASE_S)
        ray.util.remove_placement_group(placement_group_from_id(key))
    while left and _held() & left and time.monotonic() < deadline + RELEASE_S:
        time.sleep(0.1)


def _reasons(results: tune.ResultGrid) -> dict[str, str]:
    reasons = {}
    for result in results:
        if result.error is not None:
            assert result.config is not None
            cause = getattr(result.error, "cause", None) or result.error
            reasons[result.config["name"]] = f"{type(cause).__name__}: {cause}"
    return reasons
