"""Which trials go on: ASHA at its rungs, and the limit of device-hours."""

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
"""What rungs are counted in: epochs, or the compute of an epoch of the dearest setting."""


class Rungs(ASHAScheduler):
    """Tune's ASHA, which measures trials against those of an earlier process too.

    Never stops a trial at its last epoch: there it publishes its run. Stops any when the hours are
    spent.
    """

    def __init__(
        self,
        config: SearchConfig,
        budget: Budget,
        pace: Mapping[str, float],
        past: Mapping[str, History],
    ) -> None:
        """`pace`: by trial, how much of PROGRESS an epoch of it is. `past`: epochs of trials that
        have ended."""
        self._last = config.base.optim.epochs
        self._budget = budget
        self._pace = pace
        self._share = config.reduction
        self.reasons: dict[str, str] = {}
        """Of trials that were stopped."""
        self._halves = config.scheduler == "asha" and config.grace_epochs < self._last
        grace = config.grace_epochs if self._halves else self._last
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
            self._remember(name, history)

    @property
    def may_stop(self) -> bool:
        """Whether a trial can end before its last epoch, or the one it pauses after."""
        return self._halves or self._budget.max_hours > 0

    def _remember(self, name: str, history: History) -> None:
        runner: Any = None  # it has no use for one
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
                f"ASHA: not among the best 1/{self._share} after epoch {result['epoch']}"
            )
        elif self._budget.spent:
            self.reasons[name] = LIMIT
        return TrialScheduler.STOP if name in self.reasons else action

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        progress = self._with_progress(trial.config["name"], result) if METRIC in result else result
        super().on_trial_complete(tune_controller, trial, progress)

    def bars(self) -> list[tuple[float, int, float]]:
        """Of each rung that trials have reached, the lowest first: where it is, how many were
        there, and the score that the next has to have."""
        return [
            (at, len(scores), np.percentile([*scores.values()], 100 - 100 / self._share))
            for at, scores in asha_rungs(self)
            if scores and at < self._last
        ]
