"""The rounds of a search: trials on rising shares of the rows, then repetitions of the best.

Each round reads the folders of its trials first, and runs only what they do not contain yet.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from img2prompt.config.search import SearchConfig
from img2prompt.model.towers.base import TowerShape
from img2prompt.search import capacity, prices, tuning
from img2prompt.search.budget import LIMIT, Budget
from img2prompt.search.heads import StartHead
from img2prompt.search.prices import Price
from img2prompt.search.propose import ListSearcher, TpeSearcher
from img2prompt.search.results import trial_row
from img2prompt.search.schedule import SearchScheduler
from img2prompt.search.space import Setting, Space, trial_config
from img2prompt.search.trials import (
    METRIC,
    TrialJob,
    TrialOutcome,
    delete_checkpoints_if_stopped,
    is_started,
    mark_stopped,
    read_outcome,
)
from img2prompt.search.watch import SearchWatch
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import SearchFolder


@dataclass(frozen=True)
class SearchTrial:
    """A training run of a search: a setting on a share of the rows, with one seed."""

    setting: Setting
    share: float
    job: TrialJob

    @property
    def name(self) -> str:
        return self.job.config.name


@dataclass
class SearchRounds:
    """Runs the rounds of a search, and knows all its trials."""

    config: SearchConfig
    inputs: TrainInputs
    folder: str
    shape: TowerShape
    space: Space
    costs: Mapping[Setting, Price]
    """Predicted costs on all rows."""
    starts: Mapping[int, StartHead]
    """Heads that trials start from, by width; empty: random ones."""
    budget: Budget
    watch: SearchWatch
    failures: dict[str, str] = field(default_factory=dict)
    """Why trials failed, by name."""
    limited: bool = False
    """True when trials are missing because `max_hours` was reached."""
    _trials: dict[tuple[Setting, float, int], SearchTrial] = field(default_factory=dict)

    def run(self, settings: Sequence[Setting]) -> None:
        """Train settings on the first share and the best on the next, then repeat the best."""
        for share, repeat in self._shares_and_repeats():
            started = self._started_trials(self.space.settings, share, repeat)
            self.budget.update(trial.job for trial in started)
        shares = self.config.shares
        settings = self._train(settings, shares[0], tpe=self.config.searcher == "tpe")
        for share, next_share in itertools.pairwise(shares):
            best = self._best_settings(settings, share)
            settings = self._train(best[: -(-len(settings) // self.config.reduction)], next_share)
        best = self._best_settings(settings, 1.0)[: self.config.top]
        repeats = [self.trial(s, repeat=n) for n in range(1, self.config.seeds) for s in best]
        self._run_trials(repeats, to_the_end=True)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of trials.json for each setting that was started, and each of its seeds."""
        rows = []
        for repeat in range(self.config.seeds):
            for setting in self.space.settings:
                shares = self.config.shares if repeat == 0 else (1.0,)
                runs = [
                    t for share in shares for t in self._started_trials([setting], share, repeat)
                ]
                if runs:
                    rows.append(self._row(runs))
        return rows

    def _row(self, runs: Sequence[SearchTrial]) -> dict[str, Any]:
        counts, last = self.inputs.shards.counts, runs[-1]
        results = [
            (t.job, read_outcome(t.job), prices.price(t.job.config, self.shape, counts))
            for t in runs
        ]
        dropped = f"not among the best 1/{self.config.reduction} on a share of {last.share:g}"
        return trial_row(
            last.setting,
            results,
            full_share=self.config.base.optim.share,
            failure=self.failures.get(last.name, ""),
            dropped="" if self.limited else dropped,
        )

    def trial(self, setting: Setting, share: float = 1.0, repeat: int = 0) -> SearchTrial:
        """Return the trial of a setting, the same object for the same arguments."""
        key = setting, share, repeat
        if key not in self._trials:
            start = self.starts.get(setting.head_width)
            head, run = (start.config, start.run) if start else (None, None)
            config = trial_config(self.config, setting, share, repeat, head)
            own = TrainInputs(self.inputs.shards, start=run, targets=self.inputs.targets)
            job = TrialJob(config, own, SearchFolder(self.folder).trial(config.name))
            self._trials[key] = SearchTrial(setting, share, job)
        return self._trials[key]

    def _shares_and_repeats(self) -> list[tuple[float, int]]:
        """Return the shares and repetitions that a setting may have trials of."""
        repeats = [(1.0, repeat) for repeat in range(1, self.config.seeds)]
        return [(share, 0) for share in self.config.shares] + repeats

    def _started_trials(
        self, settings: Sequence[Setting], share: float, repeat: int
    ) -> list[SearchTrial]:
        """Return the trials that were started; one that failed may have left no folder."""
        trials = [self.trial(setting, share, repeat) for setting in settings]
        return [t for t in trials if t.name in self.failures or is_started(t.job)]

    def _best_settings(self, settings: Sequence[Setting], share: float) -> list[Setting]:
        """Return the settings that have a score on this share, the best first."""
        jobs = [(self.trial(setting, share).job, setting) for setting in settings]
        scores = [(read_outcome(job).best, setting) for job, setting in jobs]
        scored = [(score, setting) for score, setting in scores if score is not None]
        return [setting for _, setting in sorted(scored, key=lambda pair: -pair[0])]

    def _train(
        self, settings: Sequence[Setting], share: float, *, tpe: bool = False
    ) -> list[Setting]:
        """Train settings on a share of the rows; return those that were started."""
        trials = [self.trial(setting, share) for setting in settings]
        if self.config.scheduler == "one-epoch":
            pauses = {trial.name: self._pause(trial.setting) for trial in trials}
            self._run_trials(trials, pauses, tpe=tpe)
            trials = self._started_trials(settings, share, 0)
            self._stop_all_but_best(trials, pauses)
            tpe = False
        self._run_trials(trials, tpe=tpe)
        return [trial.setting for trial in self._started_trials(settings, share, 0)]

    def _pace(self, setting: Setting) -> float:
        """Return what an epoch of a setting counts in epochs of the most expensive setting."""
        if self.config.compare == "epochs":
            return 1.0
        return self.costs[setting].epoch / max(cost.epoch for cost in self.costs.values())

    def _pause(self, setting: Setting) -> int:
        """Return the epochs after which a trial pauses to be compared."""
        epochs = int(self.config.grace_epochs / self._pace(setting) + 1e-9)
        return min(epochs, self.config.base.optim.epochs)

    def _stop_all_but_best(self, trials: Sequence[SearchTrial], pauses: Mapping[str, int]) -> None:
        """Stop all but the best `top` trials, by their scores where they paused."""
        if self.limited:
            return
        outcomes = {trial.name: read_outcome(trial.job) for trial in trials}
        scores = {
            name: max((row[METRIC] for row in outcome.epochs[: pauses[name]]), default=-1.0)
            for name, outcome in outcomes.items()
        }
        for trial in sorted(trials, key=lambda t: -scores[t.name])[self.config.top :]:
            outcome = outcomes[trial.name]
            if outcome.end == "open" and trial.name not in self.failures:
                epochs = outcome.epochs
                reason = f"not among the best {self.config.top} after {len(epochs)} epochs"
                mark_stopped(trial.job, epochs, reason)

    def _run_trials(
        self,
        trials: Sequence[SearchTrial],
        pauses: Mapping[str, int] | None = None,
        *,
        tpe: bool = False,
        to_the_end: bool = False,
    ) -> None:
        """Run the trials that have neither ended nor reached their pause."""
        pauses, jobs = pauses or {}, {trial.name: trial.job for trial in trials}
        outcomes = {name: read_outcome(job) for name, job in jobs.items()}
        over = {n: o for n, o in outcomes.items() if _is_over(o, pauses.get(n, 0))}
        open_trials = [trial for trial in trials if trial.name not in over]
        if tpe:
            searcher = self._tpe_searcher(trials, open_trials, over)
        else:
            searcher = ListSearcher({t.name: t.setting for t in open_trials}, self.budget)
        if searcher.waiting and not self.budget.is_spent:
            scheduler = self._scheduler(trials, over, to_the_end=to_the_end)
            flop = {trial.name: self.costs[trial.setting].epoch * trial.share for trial in trials}
            self.watch.add_trials(jobs, flop, searcher, scheduler, outcomes)
            self.failures |= tuning.run(
                jobs,
                searcher,
                scheduler,
                self.watch,
                self.folder,
                max_concurrent=capacity.concurrent_trials(self.config),
                pauses=pauses,
            )
            self.limited |= LIMIT in scheduler.reasons.values()
        for job in jobs.values():
            delete_checkpoints_if_stopped(job)
        self.limited |= self.budget.is_spent and searcher.waiting > 0

    def _scheduler(
        self, trials: Sequence[SearchTrial], over: Mapping[str, TrialOutcome], *, to_the_end: bool
    ) -> SearchScheduler:
        config = self.config
        if to_the_end:
            config = dataclasses.replace(config, scheduler="none")
        pace = {trial.name: self._pace(trial.setting) for trial in trials}
        return SearchScheduler(config, self.budget, pace, {n: o.epochs for n, o in over.items()})

    def _tpe_searcher(
        self,
        trials: Sequence[SearchTrial],
        open_trials: Sequence[SearchTrial],
        over: Mapping[str, TrialOutcome],
    ) -> TpeSearcher:
        by_name = {trial.name: trial for trial in trials}
        known = {by_name[name].setting: o.best for name, o in over.items() if o.best is not None}
        return TpeSearcher(
            {trial.name: trial.setting for trial in open_trials if is_started(trial.job)},
            self.budget,
            self.space,
            known,
            trials=self.config.trials,
            seed=self.config.seed,
            names={trial.setting: trial.name for trial in trials},
            best_of=lambda name: read_outcome(by_name[name].job).best,
        )


def _is_over(outcome: TrialOutcome, pause: int) -> bool:
    """Return True if a trial has ended, or reached its pause (0: none)."""
    return outcome.end != "open" or 0 < pause <= len(outcome.epochs)
