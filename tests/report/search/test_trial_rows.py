import math

import pytest
from planted import failed, on_shares, row, search, settings, stop
from scipy.stats import spearmanr

from img2prompt.report.search.trial_rows import (
    TooFew,
    at_share,
    by_setting,
    common_epochs,
    curve,
    first_share,
    flop_spent,
    lora_share,
    pareto,
    rank_agreement,
    score_at,
    scored,
    seed_deviation,
)

SETTING = settings()[0]


def test_a_score_is_the_best_so_far_and_nan_beyond_the_last_epoch() -> None:
    trial = row(SETTING, 0.8, epochs=3)
    for epoch, value in zip(trial["epochs"], (0.6, 0.7, 0.65), strict=True):
        epoch["val_cosine"] = value
    assert curve(trial) == [0.6, 0.7, 0.7]
    assert score_at(trial, 3) == 0.7
    assert math.isnan(score_at(trial, 4))


def test_common_epochs_are_reached_by_nine_in_ten_trials() -> None:
    long = [row(s, 0.8) for s in settings()[:20]]
    assert common_epochs(long) == 4
    assert common_epochs(stop(long, epochs=1, keep=18)) == 4
    assert common_epochs(stop(long, epochs=1, keep=17)) == 1
    assert common_epochs([*long, failed(SETTING)]) == 4
    with pytest.raises(TooFew, match="No trial"):
        common_epochs([failed(SETTING)])


def test_seeds_of_a_setting_are_one_group_and_failed_trials_are_left_out() -> None:
    rows = [*search(lambda s: 0.7, settings()[:3], seeds=2), failed(settings()[4])]
    assert [len(group) for group in by_setting(rows, 4).values()] == [2, 2, 2]
    assert len(scored(rows)) == 6
    assert by_setting(rows, 5) == {}


def test_seed_deviation_is_the_planted_one() -> None:
    rows = search(lambda s: 0.5 + s["lora_rate"], settings(), noise=0.01, seeds=4)
    deviation, freedom = seed_deviation(rows, 4)
    assert freedom == 3 * len(settings())
    assert deviation == pytest.approx(0.01, rel=0.15)
    assert seed_deviation(search(lambda s: 0.5, settings()), 4)[1] == 0


def test_scores_on_different_shares_of_the_rows_are_separate() -> None:
    whole = search(lambda s: 0.7 + 0.1 * s["lora_rate"] + 0.01 * s["nfz_rate"], settings(), 0.001)
    rows = on_shares(whole, 0.25, keep=5)
    assert first_share(rows) == 0.25
    assert len(at_share(rows, 0.25)) == len(whole)
    early = [score_at(r, 4) for r in at_share(rows, 0.25)]
    assert early == pytest.approx([r["best"] - 0.2 for r in whole])
    assert at_share(rows, 1.0) == rows[:5]
    assert rank_agreement(rows, 4) == (pytest.approx(1), 5)
    assert first_share(whole) == 1.0
    assert at_share(whole, 1.0) == whole


def test_rank_agreement() -> None:
    rows = search(lambda s: 0.7 + 0.1 * s["lora_rate"], settings(), 0.001)
    for r in rows[::2]:
        r["epochs"][0]["val_cosine"] -= 0.3
    value, trials = rank_agreement(rows, 1) or (0, 0)
    expected = spearmanr([r["epochs"][0]["val_cosine"] for r in rows], [r["best"] for r in rows])
    assert value == pytest.approx(expected.statistic)
    assert trials == len(rows)
    assert rank_agreement(rows, 4) is None  # the end itself
    assert rank_agreement(stop(rows, 1, keep=4), 1) is None


def test_cost_and_lora_share() -> None:
    trial = row({"lora_rate": 0.6, "nfz_rate": 0.2, "head_width": 0}, 0.8, epochs=2)
    assert flop_spent(trial) == 1e9 * (10 + 6 + 4) * 8000
    assert lora_share(trial) == 0.75
    assert math.isnan(lora_share({"plan": {"frozen": [0], "lora": [], "trained": []}}))


def test_pareto_front_by_hand() -> None:
    cost, score = [3.0, 1.0, 2.0, 4.0, 2.0], [0.7, 0.5, 0.6, 0.7, 0.4]
    assert pareto(cost, score) == [1, 2, 0]
    assert pareto([], []) == []
