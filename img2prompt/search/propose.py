"""Searchers for Ray Tune: the trials of a list, or those that Optuna's TPE suggests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import TPESampler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from img2prompt.search.budget import Budget
from img2prompt.search.space import Setting, Space
from img2prompt.search.trials import METRIC

ATTEMPTS = 256
"""Most suggestions in a row that are not a new setting."""


class ListSearcher(Searcher):
    """Hand out trials in a given order, until the hours are spent."""

    def __init__(self, trials: Mapping[str, Setting], budget: Budget) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._waiting = dict(trials)
        self._budget = budget
        self.started: dict[str, str] = {}
        """Names of the trials that were handed out, by Tune's ids."""

    def suggest(self, trial_id: str) -> Any:
        trial = None if self._budget.is_spent else self._next(trial_id)
        if trial is None:
            return Searcher.FINISHED
        name, setting = trial
        self.started[trial_id] = name
        return {"name": name, **setting.to_dict()}

    def _next(self, trial_id: str) -> tuple[str, Setting] | None:
        if not self._waiting:
            return None
        name = next(iter(self._waiting))
        return name, self._waiting.pop(name)

    @property
    def waiting(self) -> int:
        """Number of trials that are not handed out yet."""
        return len(self._waiting)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # the folders of the trials are the state of a search

    def restore(self, checkpoint_path: str) -> None:
        pass


class TpeSearcher(ListSearcher):
    """Hand out unfinished trials, then what Optuna's TPE suggests, up to `trials` settings.

    TPE (Bergstra et al., NeurIPS 2011) sees layer counts and positions of values on their axes. A
    suggestion that is not in the space counts as failed and is drawn again. One that has ended is
    reported with its score and not run again, so a resumed search repeats the suggestions of the
    one that was killed.
    """

    def __init__(
        self,
        unfinished: Mapping[str, Setting],
        budget: Budget,
        space: Space,
        known: Mapping[Setting, float],
        *,
        trials: int,
        seed: int,
        names: Mapping[Setting, str],
        best_of: Callable[[str], float | None],
    ) -> None:
        """Prepare the sampler.

        Args:
            unfinished: Trials to resume first.
            budget: Hours of the search.
            space: Settings that may be suggested.
            known: Best scores of settings that have ended.
            trials: Most settings to try.
            seed: Seed of the sampler.
            names: Names of the settings' trials.
            best_of: Returns the best score of a trial that has just ended.
        """
        super().__init__(unfinished, budget)
        self._space = space
        self._known = dict(known)
        self._tried = {*known, *unfinished.values()}
        self._limit = min(trials, len(space.settings))
        self._names, self._best_of = names, best_of
        self._settings = {name: setting for setting, name in names.items()}
        self._axes = [_sorted(set(values)) for values in zip(*space.by_coordinates, strict=True)]
        self._tpe = _optuna(self._axes, trials, seed)
        self._suggestions: dict[str, str] = {}
        """Keys of TPE's suggestions that are running, by Tune's ids."""

    @property
    def waiting(self) -> int:
        return super().waiting + max(0, self._limit - len(self._tried))

    def _next(self, trial_id: str) -> tuple[str, Setting] | None:
        if listed := super()._next(trial_id):
            return listed
        if len(self._tried) >= self._limit:
            return None
        setting = self._suggestion(trial_id)
        self._tried.add(setting)
        return self._names[setting], setting

    def _suggestion(self, trial_id: str) -> Setting:
        """Return a setting that was not tried yet."""
        for attempt in range(ATTEMPTS):
            key = f"{trial_id}/{attempt}"
            point = self._tpe.suggest(key) or {}
            coordinates = tuple(axis[point[str(n)]] for n, axis in enumerate(self._axes))
            setting = self._space.by_coordinates.get(coordinates)
            if setting is not None and setting not in self._tried:
                self._suggestions[trial_id] = key
                return setting
            self._report(key, self._known.get(setting) if setting else None)
        return next(setting for setting in self._space.settings if setting not in self._tried)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        name = self.started[trial_id]
        best = None if error else self._best_of(name)
        if best is not None:
            self._known[self._settings[name]] = best
        if trial_id in self._suggestions:
            self._report(self._suggestions[trial_id], best)

    def _report(self, key: str, score: float | None) -> None:
        result = None if score is None else {METRIC: score}
        self._tpe.on_trial_complete(key, result, error=score is None)


def _optuna(axes: Sequence[Sequence[Any]], trials: int, seed: int) -> OptunaSearch:
    """Return TPE over positions on the axes; the first quarter of the trials is random."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space: Any = {str(n): IntDistribution(0, len(axis) - 1) for n, axis in enumerate(axes)}
    sampler = TPESampler(seed=seed, n_startup_trials=max(4, trials // 4))
    return OptunaSearch(space, metric=METRIC, mode="max", sampler=sampler)


def _sorted(values: Iterable[Any]) -> list[Any]:
    """Sort numbers by size, and anything else as text."""
    items = list(values)
    is_numeric = all(isinstance(item, int | float) for item in items)
    return sorted(items, key=None if is_numeric else str)
