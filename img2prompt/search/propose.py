"""What is tried next: a list, or what Optuna's TPE expects most of."""

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
"""Suggestions in a row that may be no new setting."""


class Listed(Searcher):
    """Trials in a given order, until the hours are spent."""

    def __init__(self, trials: Mapping[str, Setting], budget: Budget) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._waiting = dict(trials)
        self._budget = budget
        self.begun: dict[str, str] = {}
        """Names of the trials that were handed out, by Tune's ids."""

    def suggest(self, trial_id: str) -> Any:
        found = None if self._budget.spent else self._next(trial_id)
        if found is None:
            return Searcher.FINISHED
        name, setting = found
        self.begun[trial_id] = name
        return {"name": name, **setting.to_dict()}

    def _next(self, trial_id: str) -> tuple[str, Setting] | None:
        if not self._waiting:
            return None
        name = next(iter(self._waiting))
        return name, self._waiting.pop(name)

    @property
    def waiting(self) -> int:
        """Trials that are still to come."""
        return len(self._waiting)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # folders say how far a search is

    def restore(self, checkpoint_path: str) -> None:
        pass


class Suggested(Listed):
    """Then what Optuna's TPE suggests, until `trials` settings were tried.

    TPE (Bergstra et al., NeurIPS 2011) sees layer counts and the places of values on their axes. A
    suggestion that is no setting of the space counts as failed and is drawn again; one that has
    ended is answered with its score and not run again. So a search that was killed is led to where
    it was by the same suggestions.
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
        """`known`: best scores of settings that have ended; `names` of their trials; `best_of`: of
        a trial that ended now."""
        super().__init__(unfinished, budget)
        self._space = space
        self._known = dict(known)
        self._tried = {*known, *unfinished.values()}
        self._most = min(trials, len(space.settings))
        self._names, self._best_of = names, best_of
        self._settings = {name: setting for setting, name in names.items()}
        self._axes = [_sorted(set(values)) for values in zip(*space.places, strict=True)]
        self._tpe = _optuna(self._axes, trials, seed)
        self._asked: dict[str, str] = {}
        """Keys of the suggestions that run, by Tune's ids."""

    @property
    def waiting(self) -> int:
        return super().waiting + max(0, self._most - len(self._tried))

    def _next(self, trial_id: str) -> tuple[str, Setting] | None:
        if listed := super()._next(trial_id):
            return listed
        if len(self._tried) >= self._most:
            return None
        setting = self._suggestion(trial_id)
        self._tried.add(setting)
        return self._names[setting], setting

    def _suggestion(self, trial_id: str) -> Setting:
        """A setting that was not tried."""
        for attempt in range(ATTEMPTS):
            key = f"{trial_id}/{attempt}"
            point = self._tpe.suggest(key) or {}
            place = tuple(axis[point[str(n)]] for n, axis in enumerate(self._axes))
            setting = self._space.places.get(place)
            if setting is not None and setting not in self._tried:
                self._asked[trial_id] = key
                return setting
            self._tell(key, self._known.get(setting) if setting else None)
        return next(setting for setting in self._space.settings if setting not in self._tried)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        name = self.begun[trial_id]
        best = None if error else self._best_of(name)
        if best is not None:
            self._known[self._settings[name]] = best
        if trial_id in self._asked:
            self._tell(self._asked[trial_id], best)

    def _tell(self, key: str, score: float | None) -> None:
        result = None if score is None else {METRIC: score}
        self._tpe.on_trial_complete(key, result, error=score is None)


def _optuna(axes: Sequence[Sequence[Any]], trials: int, seed: int) -> OptunaSearch:
    """TPE over places on the axes, at random for the first quarter of the trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space: Any = {str(n): IntDistribution(0, len(axis) - 1) for n, axis in enumerate(axes)}
    sampler = TPESampler(seed=seed, n_startup_trials=max(4, trials // 4))
    return OptunaSearch(space, metric=METRIC, mode="max", sampler=sampler)


def _sorted(values: Iterable[Any]) -> list[Any]:
    """Numbers by size, else as text."""
    found = list(values)
    numbers = all(isinstance(value, int | float) for value in found)
    return sorted(found, key=None if numbers else str)
