"""The scheduler and the searchers of a search: the parts that Tune calls."""

from collections.abc import Mapping
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.search import Searcher

from img2prompt import presets
from img2prompt.config.search import SearchConfig
from img2prompt.search.budget import LIMIT, Budget
from img2prompt.search.propose import ListSearcher, TpeSearcher
from img2prompt.search.schedule import SearchScheduler
from img2prompt.search.space import Setting, Space, space_of, trial_name

EPOCHS = 4
DEPTH = 7


def search_of(**changes: Any) -> SearchConfig:
    fields = {"base.optim.epochs": EPOCHS, "grace_epochs": 1, "reduction": 4}
    return presets.demo_full_search().replace(fields | changes)


def spent(hours: float, limit: float) -> Budget:
    budget = Budget(limit)
    budget._seconds["trial"] = 3600 * hours
    return budget


def history_of(*scores: float) -> list[dict[str, float]]:
    return [{"epoch": epoch + 1, "val_cosine": score} for epoch, score in enumerate(scores)]


def decisions(
    past: Mapping[str, list], *scores: float, pace: float = 1.0, budget=None, **changes: Any
) -> tuple[list[str], str]:
    """Return the decisions about a trial after each of its epochs, and the reason of a stop."""
    paces = dict.fromkeys([*past, "new"], 1.0) | {"new": pace}
    scheduler = SearchScheduler(search_of(**changes), budget or Budget(0), paces, past)
    trial: Any = SimpleNamespace(trial_id="id", config={"name": "new"})
    scheduler.on_trial_add(None, trial)
    actions = [scheduler.on_trial_result(None, trial, row) for row in history_of(*scores)]
    return actions, scheduler.reasons.get("new", "")


def test_trials_are_compared_with_those_of_an_earlier_process() -> None:
    past = {"a": history_of(0.1, 0.3), "b": history_of(0.5, 0.6), "c": history_of(0.2)}
    bar = np.percentile([0.1, 0.5, 0.2], 75)  # at the first epoch, the only rung
    below, why = decisions(past, bar - 0.01)
    assert below == ["STOP"]
    assert why == "ASHA: not among the best 1/4 after epoch 1"
    assert decisions(past, bar + 0.01, 0.0, 0.0, 0.0) == (["CONTINUE"] * EPOCHS, "")
    assert decisions({}, 0.0, 0.0, 0.0, 0.0) == (["CONTINUE"] * EPOCHS, "")
    assert decisions(past, 0.0, 0.0, 0.0, 0.0, scheduler="none") == (["CONTINUE"] * EPOCHS, "")


def test_no_trial_is_stopped_at_its_last_epoch_or_in_its_grace() -> None:
    past = {name: history_of(0.9, 0.9, 0.9, 0.9) for name in "abc"}
    later, _ = decisions(past, 0.1, 0.1, 0.1, 0.1, grace_epochs=3)
    assert later == ["CONTINUE", "CONTINUE", "STOP", "CONTINUE"]
    last, why = decisions(past, 0.1, 0.1, 0.1, 0.1, grace_epochs=EPOCHS)
    assert last == ["CONTINUE"] * EPOCHS
    assert why == ""


def test_a_cheap_plan_is_compared_after_as_much_compute() -> None:
    past = {name: history_of(0.9, 0.9, 0.9, 0.9) for name in "abc"}
    assert decisions(past, 0.1, 0.1)[0][0] == "STOP"
    half, why = decisions(past, 0.1, 0.1, pace=0.5)
    assert half == ["CONTINUE", "STOP"]
    assert "after epoch 2" in why


def test_no_epoch_starts_when_the_hours_are_spent() -> None:
    assert decisions({}, 0.1, 0.2, budget=spent(1.1, 1.0)) == (["STOP", "STOP"], LIMIT)
    assert decisions({}, 0.1, 0.2, budget=spent(0.9, 1.0)) == (["CONTINUE"] * 2, "")
    assert decisions({}, *[0.1] * EPOCHS, budget=spent(2, 1))[0][-1] == "CONTINUE", "it publishes"


@pytest.mark.parametrize(
    ("changes", "hours", "may_stop"),
    [
        ({"scheduler": "asha"}, 0, True),
        ({"scheduler": "asha", "grace_epochs": EPOCHS}, 0, False),
        ({"scheduler": "one-epoch"}, 0, False),
        ({"scheduler": "none"}, 0, False),
        ({"scheduler": "none"}, 1.0, True),
    ],
)
def test_processes_are_reused_where_no_trial_is_stopped(changes, hours, may_stop) -> None:
    assert SearchScheduler(search_of(**changes), Budget(hours), {}, {}).may_stop == may_stop


def test_reached_rungs_have_counts_and_thresholds() -> None:
    past = {name: history_of(*[score] * EPOCHS) for name, score in {"a": 1, "b": 2, "c": 3}.items()}
    scheduler = SearchScheduler(search_of(reduction=2), Budget(0), dict.fromkeys("abc", 1.0), past)
    assert scheduler.reached_rungs() == [(1, 3, 2.0), (2, 3, 2.0)]


def test_trials_are_handed_out_in_order_until_the_hours_are_spent() -> None:
    settings = {name: Setting(0.1, 0.2, 0, (("optim.lr", 0.5),)) for name in "abc"}
    budget = Budget(1.0)
    listed = ListSearcher(settings, budget)
    first = {"name": "a", "lora_rate": 0.1, "nfz_rate": 0.2, "head_width": 0, "optim.lr": 0.5}
    assert listed.suggest("1") == first
    assert listed.waiting == 2
    budget._seconds["a"] = 3600
    assert listed.suggest("2") == Searcher.FINISHED
    assert listed.started == {"1": "a"}


def tpe_space() -> Space:
    """Return 49 points of seven layers, of which 35 plans are valid, with two ranks each."""
    rates = [number / 7 for number in range(DEPTH)]
    config = search_of(
        lora_rates=rates, nfz_rates=rates, head_widths=(0,), axes={"plan.lora_rank": "4,16"}
    )
    return space_of(config, DEPTH)


def score_of(setting: Setting) -> float:
    """Return a score that is best at three trained layers, two with LoRA and the larger rank."""
    off = (round(7 * setting.nfz_rate) - 3) ** 2 + (round(7 * setting.lora_rate) - 2) ** 2
    return -off - (0.5 if dict(setting.options)["plan.lora_rank"] == 4 else 0.0)


def suggested(
    space: Space, known: Mapping[Setting, float], trials: int, seed: int, started=()
) -> TpeSearcher:
    names = {setting: trial_name(setting) for setting in space.settings}
    scores = {name: score_of(setting) for setting, name in names.items()}
    unfinished = {names[setting]: setting for setting in started}
    return TpeSearcher(
        unfinished,
        Budget(0),
        space,
        known,
        trials=trials,
        seed=seed,
        names=names,
        best_of=scores.__getitem__,
    )


def tried_by(tpe: TpeSearcher, space: Space) -> list[Setting]:
    """Return the settings that are tried, one after the other."""
    by_name = {trial_name(setting): setting for setting in space.settings}
    tried = []
    for number in range(1000):
        suggestion = tpe.suggest(str(number))
        if suggestion == Searcher.FINISHED:
            return tried
        tried.append(by_name[suggestion["name"]])
        tpe.on_trial_complete(str(number), {"val_cosine": -1.0})
    raise AssertionError("it never ends")


@pytest.mark.parametrize("seed", range(3))
def test_tpe_tries_distinct_valid_settings_and_finds_good_ones(seed: int) -> None:
    space = tpe_space()
    tried = tried_by(suggested(space, {}, 24, seed), space)
    assert len(tried) == len(set(tried)) == 24
    assert set(tried) <= set(space.settings)
    order = sorted(space.settings, key=score_of, reverse=True)
    assert order.index(max(tried, key=score_of)) < 3
    drawn = np.random.default_rng(seed).permutation(len(order))[:24]
    assert np.mean([score_of(s) for s in tried]) > np.mean([score_of(order[n]) for n in drawn])


def test_a_resumed_tpe_repeats_its_suggestions() -> None:
    space = tpe_space()
    whole = tried_by(suggested(space, {}, 16, 5), space)
    known = {setting: score_of(setting) for setting in whole[:9]}
    assert tried_by(suggested(space, known, 16, 5), space) == whole[9:]
    unfinished = tried_by(suggested(space, known, 16, 5, started=[whole[9]]), space)
    assert unfinished == whole[9:]


def test_tpe_ends_when_it_has_tried_all_settings() -> None:
    rates = [0.0, 1 / 7, 2 / 7]
    space = space_of(search_of(lora_rates=rates, nfz_rates=rates, head_widths=(0, 8)), DEPTH)
    names = {setting: trial_name(setting) for setting in space.settings}
    tpe = TpeSearcher(
        {}, Budget(0), space, {}, trials=99, seed=0, names=names, best_of=lambda _: 0.0
    )
    assert sorted(tried_by(tpe, space), key=str) == sorted(space.settings, key=str)
    pairs = [pair for pair in product(range(3), range(3)) if sum(pair)]
    assert len(space.settings) == 2 * len(pairs)


def test_tpe_continues_after_a_failed_trial() -> None:
    space = tpe_space()
    tpe = suggested(space, {}, 3, 0)
    name = tpe.suggest("a")["name"]
    tpe.on_trial_complete("a", None, error=True)
    others = [tpe.suggest(key)["name"] for key in "bc"]
    assert name not in others
    assert tpe.suggest("d") == Searcher.FINISHED
