"""Scheduler for Ray Tune: which trials continue, by ASHA's rungs and the limit of hours."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from img2prompt.config.search import SearchConfig
from img2prompt.distributed.internals import asha_rungs
from img2prompt.search.budget import LIMIT, Budget
from img2prompt.search.trials import METRIC
from img2prompt.train.checkpoint import History

PROGRESS = "progress"
"""Unit of the rungs: epochs, or the compute of an epoch of the most expensive setting."""


class SearchScheduler(ASHAScheduler):
    """Tune's ASHA, which also compares trials with those of an earlier process.

    It stops no trial at its last epoch, where the trial publishes its run. When the hours are
    spent, it stops all others.
    """

    def __init__(
        self,
        config: SearchConfig,
        budget: Budget,
        pace: Mapping[str, float],
        past: Mapping[str, History],
    ) -> None:
        """Prepare the rungs.

        Args:
            config: The search.
            budget: Its hours.
            pace: PROGRESS that an epoch of each trial makes.
            past: Epochs of trials that have ended.
        """
        self._last = config.base.optim.epochs
        self._budget = budget
        self._pace = pace
        self._reduction = config.reduction
        self.reasons: dict[str, str] = {}
        """Why trials were stopped, by name."""
        self._has_rungs = config.scheduler == "asha" and config.grace_epochs < self._last
        grace = config.grace_epochs if self._has_rungs else self._last
        super().__init__(
            time_attr=PROGRESS,
            metric=METRIC,
            mode="max",
            grace_period=grace,
            max_t=self._last,
            reduction_factor=config.reduction,
            stop_last_trials=False,
        )
        for name, history in past.items():
            self._add_past_trial(name, history)

    @property
    def may_stop(self) -> bool:
        """True if a trial can end before its last epoch, or the one after which it pauses."""
        return self._has_rungs or self._budget.max_hours > 0

    def _add_past_trial(self, name: str, history: History) -> None:
        runner: Any = None  # ASHA does not use it
        trial: Any = SimpleNamespace(trial_id=name)
        self.on_trial_add(runner, trial)
        for row in history:
            super().on_trial_result(runner, trial, self._with_progress(name, row))

    def _with_progress(self, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
        return {**row, PROGRESS: row["epoch"] * self._pace[name]}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        name = trial.config["name"]
        action = super().on_trial_result(tune_controller, trial, self._with_progress(name, result))
        if result["epoch"] >= self._last:
            return TrialScheduler.CONTINUE
        if action == TrialScheduler.STOP:
            self.reasons[name] = (
                f"ASHA: not among the best 1/{self._reduction} after epoch {result['epoch']}"
            )
        elif self._budget.is_spent:
            self.reasons[name] = LIMIT
        return TrialScheduler.STOP if name in self.reasons else action

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        progress = self._with_progress(trial.config["name"], result) if METRIC in result else result
        super().on_trial_complete(tune_controller, trial, progress)

    def reached_rungs(self) -> list[tuple[float, int, float]]:
        """Return the rungs that trials have reached, the lowest first.

        Each is (progress, number of trials, score that the next trial needs to continue).
        """
        return [
            (at, len(scores), np.percentile([*scores.values()], 100 - 100 / self._reduction))
            for at, scores in asha_rungs(self)
            if scores and at < self._last
        ]
