import math

import numpy as np
import pytest
from planted import failed, row, search, settings, stop
from scipy import stats

from img2prompt.report.search.trial_rows import TooFew
from img2prompt.report.search.winner import winner


def two(first: list[float], second: list[float]) -> list[dict]:
    a, b = settings()[:2]
    return [row(a, v, n) for n, v in enumerate(first)] + [
        row(b, v, n) for n, v in enumerate(second)
    ]


def test_probability_is_that_of_students_test_for_two_settings() -> None:
    first, second = [0.704, 0.702, 0.707], [0.701, 0.703, 0.700]
    expected = 1 - stats.ttest_ind(first, second, alternative="greater").pvalue
    found = winner(two(first, second), draws=40_000)
    assert found.beats == pytest.approx(expected, abs=0.01)
    assert found.first == pytest.approx(expected, abs=0.01)
    assert (found.source, found.rivals) == ("seeds", 1)
    assert found.noise == pytest.approx(
        np.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    )
    assert sorted(found.scores) == sorted(first)


def test_the_best_of_many_equal_settings_is_not_sure_and_its_score_flatters() -> None:
    firsts, optimism, excess = [], [], []
    for seed in range(30):
        found = winner(search(lambda s: 0.7, settings(), 0.01, seeds=2, seed=seed), draws=500)
        firsts.append(found.first)
        optimism.append(found.optimism)
        excess.append(max(np.mean(found.scores), np.mean(found.runner_scores)) - 0.7)
    assert np.mean(firsts) < 0.5
    assert np.mean(optimism) > 0.3 * np.mean(excess) > 0


def test_a_clear_winner_is_sure() -> None:
    found = winner(search(lambda s: s["lora_rate"] - s["nfz_rate"], settings(widths=(0,)), 1e-3, 3))
    assert found.beats > 0.999
    assert found.first > 0.999


def test_without_repeated_seeds_the_surface_stands_in_or_nothing_is_said() -> None:
    rows = search(lambda s: 0.7 + 0.01 * s["lora_rate"], settings(), 0.003)
    assert math.isnan(winner(rows).beats)
    assert winner(rows).source == ""
    found = winner(rows, surface=(0.003, 20))
    assert found.source == "surface"
    assert 0.5 < found.beats < 1


def test_compared_at_equal_epochs_only() -> None:
    rows = search(lambda s: 0.7 + 0.01 * s["lora_rate"], settings(), 0.003)
    found = winner(stop(rows, 1, keep=1))
    assert (found.epochs, found.rivals) == (1, len(settings()) - 1)
    found = winner(stop(rows, 1, keep=3))
    assert (found.epochs, found.rivals) == (4, 2)


def test_one_trial_and_none() -> None:
    found = winner([row(settings()[0], 0.7), failed(settings()[1])])
    assert found.runner_up is None
    assert math.isnan(found.beats)
    assert found.epochs == 4
    for rows in ([], [failed(settings()[0])]):
        with pytest.raises(TooFew, match="No trial"):
            winner(rows)
