"""A search at work: trials on rising shares of the rows, and the best of them repeated.

Each part looks at the folders of its trials first, and runs what they lack.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from img2prompt.config.search import SearchConfig
from img2prompt.model.towers.base import TowerShape
from img2prompt.search import prices, trials, tuning
from img2prompt.search.budget import LIMIT, Budget
from img2prompt.search.heads import StartHead
from img2prompt.search.prices import Price
from img2prompt.search.propose import Listed, Suggested
from img2prompt.search.rows import row_of
from img2prompt.search.schedule import Rungs
from img2prompt.search.space import Setting, Space, trial_config
from img2prompt.search.trials import METRIC, TrialJob, TrialOutcome
from img2prompt.search.watch import SearchWatch
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import SearchFolder


@dataclass(frozen=True)
class SearchTrial:
    """A setting on a share of the rows, with the seed of a repetition."""

    setting: Setting
    share: float
    job: TrialJob

    @property
    def name(self) -> str:
        return self.job.config.name


@dataclass
class SearchRounds:
    config: SearchConfig
    inputs: TrainInputs
    folder: str
    shape: TowerShape
    space: Space
    costs: Mapping[Setting, Price]
    """On all rows."""
    starts: Mapping[int, StartHead]
    """The heads that trials start from, by width; empty: fresh ones."""
    budget: Budget
    watch: SearchWatch
    reasons: dict[str, str] = field(default_factory=dict)
    """Why trials failed, by name."""
    limited: bool = False
    """The hours were spent before all was tried."""
    _trials: dict[tuple[Setting, float, int], SearchTrial] = field(default_factory=dict)

    def run(self, settings: Sequence[Setting]) -> None:
        """Try settings on the first share, the best of them on the next, and repeat the best."""
        shares = self.config.shares
        for share, repeat in self._kinds():
            self.budget.count(t.job for t in self._begun(self.space.settings, share, repeat))
        tried = self._try(settings, shares[0], tpe=self.config.searcher == "tpe")
        for share, more in itertools.pairwise(shares):
            best = self._best([self.trial(setting, share) for setting in tried])
            tried = self._try(best[: -(-len(tried) // self.config.reduction)], more)
        best = self._best([self.trial(setting) for setting in tried])[: self.config.top]
        again = [self.trial(s, repeat=n) for n in range(1, self.config.seeds) for s in best]
        self._phase(again, to_the_end=True)

    def rows(self) -> list[dict[str, Any]]:
        """A row of trials.json for each setting that was tried, and each of its seeds."""
        rows = []
        for repeat in range(self.config.seeds):
            for setting in self.space.settings:
                shares = self.config.shares if repeat == 0 else (1.0,)
                there = [t for share in shares for t in self._begun([setting], share, repeat)]
                if there:
                    rows.append(self._row(there))
        return rows

    def _row(self, runs: Sequence[SearchTrial]) -> dict[str, Any]:
        counts, last = self.inputs.shards.counts, runs[-1]
        told = [
            (t.job, trials.outcome(t.job), prices.price(t.job.config, self.shape, counts))
            for t in runs
        ]
        left = f"not among the best 1/{self.config.reduction} on a share of {last.share:g}"
        failure = self.reasons.get(last.name, "")
        whole = self.config.base.optim.share
        return row_of(last.setting, told, whole, failure, "" if self.limited else left)

    def trial(self, setting: Setting, share: float = 1.0, repeat: int = 0) -> SearchTrial:
        key = setting, share, repeat
        if key not in self._trials:
            start = self.starts.get(setting.head_width)
            head, run = (start.config, start.run) if start else (None, None)
            config = trial_config(self.config, setting, share, repeat, head)
            own = TrainInputs(self.inputs.shards, start=run)
            job = TrialJob(config, own, SearchFolder(self.folder).trial(config.name))
            self._trials[key] = SearchTrial(setting, share, job)
        return self._trials[key]

    def _kinds(self) -> list[tuple[float, int]]:
        """Shares and repetitions that a setting may have trials of."""
        repeats = [(1.0, repeat) for repeat in range(1, self.config.seeds)]
        return [(share, 0) for share in self.config.shares] + repeats

    def _begun(self, settings: Sequence[Setting], share: float, repeat: int) -> list[SearchTrial]:
        """Those that were tried; one that failed may have left no folder."""
        there = [self.trial(setting, share, repeat) for setting in settings]
        return [t for t in there if t.name in self.reasons or trials.begun(t.job)]

    def _best(self, there: Sequence[SearchTrial]) -> list[Setting]:
        """Settings of those that have a score, the best first."""
        scores = [(trials.outcome(trial.job).best, trial.setting) for trial in there]
        scored = [(score, setting) for score, setting in scores if score is not None]
        return [setting for _, setting in sorted(scored, key=lambda pair: -pair[0])]

    def _try(
        self, settings: Sequence[Setting], share: float, *, tpe: bool = False
    ) -> list[Setting]:
        """Train settings on a share of the rows; returns those that were begun."""
        there = [self.trial(setting, share) for setting in settings]
        if self.config.scheduler == "one-epoch":
            pauses = {trial.name: self._pause(trial.setting) for trial in there}
            self._phase(there, pauses, tpe=tpe)
            there = self._begun(settings, share, 0)
            self._keep_best(there, pauses)
            tpe = False
        self._phase(there, tpe=tpe)
        return [trial.setting for trial in self._begun(settings, share, 0)]

    def _pace(self, setting: Setting) -> float:
        """How much of the dearest setting's epoch one of this setting counts for."""
        if self.config.compare == "epochs":
            return 1.0
        return self.costs[setting].epoch / max(each.epoch for each in self.costs.values())

    def _pause(self, setting: Setting) -> int:
        epochs = int(self.config.grace_epochs / self._pace(setting) + 1e-9)
        return min(epochs, self.config.base.optim.epochs)

    def _keep_best(self, there: Sequence[SearchTrial], pauses: Mapping[str, int]) -> None:
        """Stop all but the best `top`, by their scores where they paused."""
        if self.limited:
            return
        outcomes = {trial.name: trials.outcome(trial.job) for trial in there}
        scores = {
            name: max((row[METRIC] for row in ended.epochs[: pauses[name]]), default=-1.0)
            for name, ended in outcomes.items()
        }
        for trial in sorted(there, key=lambda t: -scores[t.name])[self.config.top :]:
            ended = outcomes[trial.name]
            if ended.end == "open" and trial.name not in self.reasons:
                reason = f"not among the best {self.config.top} after {len(ended.epochs)} epochs"
                trials.stop(trial.job, ended.epochs, reason)

    def _phase(
        self,
        there: Sequence[SearchTrial],
        pauses: Mapping[str, int] | None = None,
        *,
        tpe: bool = False,
        to_the_end: bool = False,
    ) -> None:
        """Run what has not ended, and not come to where it pauses either."""
        pauses, jobs = pauses or {}, {trial.name: trial.job for trial in there}
        outcomes = {trial.name: trials.outcome(trial.job) for trial in there}
        ended = {n: o for n, o in outcomes.items() if _is_over(o, pauses.get(n, 0))}
        todo = [trial for trial in there if trial.name not in ended]
        proposals = self._proposals(there, todo, ended) if tpe else self._listed(todo)
        if proposals.waiting and not self.budget.spent:
            config = self.config
            if to_the_end:
                config = dataclasses.replace(config, scheduler="none")
            pace = {trial.name: self._pace(trial.setting) for trial in there}
            rungs = Rungs(config, self.budget, pace, {n: o.epochs for n, o in ended.items()})
            flop = {trial.name: self.costs[trial.setting].epoch * trial.share for trial in there}
            self.watch.begin(jobs, flop, proposals, rungs, outcomes)
            self.reasons |= tuning.run(
                config, jobs, proposals, rungs, self.watch, self.folder, pauses
            )
            self.limited |= LIMIT in rungs.reasons.values()
        for trial in there:
            trials.clear(trial.job)
        self.limited |= self.budget.spent and proposals.waiting > 0

    def _listed(self, todo: Sequence[SearchTrial]) -> Listed:
        return Listed({trial.name: trial.setting for trial in todo}, self.budget)

    def _proposals(
        self,
        there: Sequence[SearchTrial],
        todo: Sequence[SearchTrial],
        ended: Mapping[str, TrialOutcome],
    ) -> Suggested:
        by_name = {trial.name: trial for trial in there}
        known = {by_name[name].setting: o.best for name, o in ended.items() if o.best is not None}
        return Suggested(
            {trial.name: trial.setting for trial in todo if trials.begun(trial.job)},
            self.budget,
            self.space,
            known,
            trials=self.config.trials,
            seed=self.config.seed,
            names={trial.setting: trial.name for trial in there},
            best_of=lambda name: trials.outcome(by_name[name].job).best,
        )


def _is_over(outcome: TrialOutcome, pause: int) -> bool:
    return outcome.end != "open" or 0 < pause <= len(outcome.epochs)
