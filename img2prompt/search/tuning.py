"""Run trials under Ray Tune.

Tune's own restore is not used: it loses what its scheduler had seen and up to ten seconds of
results, and keeps the concurrency of the earlier cluster.

Tune cannot see the workers that a trial's Ray Train run starts, so the number of concurrent trials
is limited to what fits the cluster; otherwise trials would wait for each other.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.state import list_placement_groups
from ray.util.state.exception import RayStateApiException

from img2prompt.distributed.internals import placement_group_from_id
from img2prompt.search.budget import LIMIT
from img2prompt.search.capacity import trials_on_a_machine
from img2prompt.search.propose import ListSearcher
from img2prompt.search.schedule import SearchScheduler
from img2prompt.search.trials import (
    TrialJob,
    delete_checkpoints_if_stopped,
    mark_stopped,
    read_outcome,
)
from img2prompt.search.watch import SearchWatch
from img2prompt.storage import absolute
from img2prompt.train import run as train
from img2prompt.train.checkpoint import SCORE
from img2prompt.train.preflight import worker_count

logger = logging.getLogger(__name__)

TABLES = "tune"
"""Folder of Tune's tables and of the TensorBoard files of all trials."""
DRIVER_CPUS = 0.01
"""CPUs of a trial's driver, which only waits for its workers."""
RELEASE_S = 60.0
"""Seconds that the workers of stopped trials have to exit."""
TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the search has tables of its own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search, not only Tune's part of it
}


def run(
    jobs: Mapping[str, TrialJob],
    searcher: ListSearcher,
    scheduler: SearchScheduler,
    watch: SearchWatch,
    folder: str,
    *,
    max_concurrent: int,
    pauses: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Run the trials that `searcher` hands out, until it has no more.

    Tune's tables and TensorBoard files, with all settings as HParams, go to `folder`/tune.

    Args:
        jobs: All trials that may be handed out, by name.
        searcher: Hands out trials.
        scheduler: Stops trials.
        watch: Shows progress.
        folder: Folder of the search.
        max_concurrent: Most trials at a time.
        pauses: Epochs after which trials pause, to be resumed by a later call.

    Returns:
        Why trials failed, by name.
    """
    os.environ.update(TUNE)
    workers = max(worker_count(job.config) for job in jobs.values())
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_once = trials_on_a_machine(max_concurrent, workers, nodes)
    tuner = tune.Tuner(
        tune.with_resources(_trial_function(jobs, pauses or {}, at_once), {"cpu": DRIVER_CPUS}),
        tune_config=_tune_config(searcher, scheduler, max_concurrent),
        run_config=tune.RunConfig(
            name=TABLES,
            storage_path=absolute(folder),
            failure_config=tune.FailureConfig(max_failures=1),  # retry once: its node may have died
            callbacks=[watch, _StopRecorder(jobs, scheduler)],
            verbose=0,
        ),
    )
    groups_before = _placement_groups()
    with watch:
        results = tuner.fit()
    _wait_for_release(groups_before)
    return _failures(results)


def _trial_function(
    jobs: Mapping[str, TrialJob], pauses: Mapping[str, int], at_once: int
) -> Callable[[dict[str, Any]], None]:
    """Return the function that Tune runs for each trial: report its old epochs, then train."""

    def run_trial(space: dict[str, Any]) -> None:
        job, until = jobs[space["name"]], pauses.get(space["name"], 0)
        run, callbacks = (job.config, job.inputs, job.folder), [TuneReportCallback()]
        for row in read_outcome(job).epochs:
            tune.report(row)
        if until:
            train.advance(*run, until, callbacks, at_once=at_once)
        else:
            train.run(*run, callbacks, at_once=at_once)

    return run_trial


def _tune_config(
    searcher: ListSearcher, scheduler: SearchScheduler, max_concurrent: int
) -> tune.TuneConfig:
    return tune.TuneConfig(
        num_samples=-1,  # until the searcher has finished
        search_alg=searcher,
        scheduler=scheduler,
        max_concurrent_trials=max_concurrent,
        # Starting a trial in the process of the last one saves seconds of imports. But a trial that
        # may be stopped needs a process of its own: its workers exit with it.
        reuse_actors=not scheduler.may_stop,
        trial_name_creator=_name,
        trial_dirname_creator=_name,
    )


def _name(trial: Trial) -> str:
    return trial.config["name"]


def _score_columns(result: Mapping[str, Any]) -> list[str]:
    return [name for name in result if name.startswith(SCORE)]


class _StopRecorder(tune.Callback):
    """Marks trials that were stopped in their folders, and deletes their checkpoints later."""

    def __init__(self, jobs: Mapping[str, TrialJob], scheduler: SearchScheduler) -> None:
        self._jobs = jobs
        self._scheduler = scheduler
        self._epochs: dict[str, dict[int, dict[str, Any]]] = {}
        self._stopped_at: dict[str, float] = {}
        """Times at which trials were stopped whose checkpoints are not deleted yet."""

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        columns = ("epoch", "train_loss", "rows_per_second", *_score_columns(result))
        row = {name: result[name] for name in columns}
        self._epochs.setdefault(_name(trial), {})[row["epoch"]] = row
        for name in [n for n, at in self._stopped_at.items() if time.monotonic() > at + RELEASE_S]:
            delete_checkpoints_if_stopped(self._jobs[name])
            del self._stopped_at[name]

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        name = _name(trial)
        reason = self._scheduler.reasons.get(name, "")
        if reason not in ("", LIMIT):  # with more hours it may resume
            mark_stopped(self._jobs[name], list(self._epochs[name].values()), reason)
            self._stopped_at[name] = time.monotonic()


def _placement_groups() -> set[str]:
    """Return ids of this job's placement groups that hold resources or wait for them.

    Empty when Ray cannot list them.
    """
    job = ray.get_runtime_context().get_job_id()
    filters: Any = [("creator_job_id", "=", job), ("state", "!=", "REMOVED")]
    try:
        return {group.placement_group_id for group in list_placement_groups(filters=filters)}
    except RayStateApiException as error:
        logger.warning("Ray cannot list placement groups: %s", error)
        return set()


def _wait_for_release(before: set[str]) -> None:
    """Wait until the workers of stopped trials have exited: they might still write checkpoints.

    Placement groups that are left after RELEASE_S are removed. This happened once: the trial had
    ended and its workers had exited, but its idle controller was alive, so Ray Train's own cleaner
    did not remove the group, and the next stage waited for its CPUs.
    """
    deadline = time.monotonic() + RELEASE_S
    while (left := _placement_groups() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    for key in left:
        logger.warning("a stopped trial still holds %s after %.0f s: removed", key, RELEASE_S)
        ray.util.remove_placement_group(placement_group_from_id(key))
    while left and _placement_groups() & left and time.monotonic() < deadline + RELEASE_S:
        time.sleep(0.1)


def _failures(results: tune.ResultGrid) -> dict[str, str]:
    """Return the errors of trials that failed, by name."""
    failures = {}
    for result in results:
        if result.error is not None:
            assert result.config is not None
            cause = getattr(result.error, "cause", None) or result.error
            failures[result.config["name"]] = f"{type(cause).__name__}: {cause}"
    return failures
