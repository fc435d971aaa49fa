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
    result = winner(two(first, second), draws=40_000)
    assert result.beats == pytest.approx(expected, abs=0.01)
    assert result.first == pytest.approx(expected, abs=0.01)
    assert (result.source, result.rivals) == ("seeds", 1)
    assert result.noise == pytest.approx(
        np.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    )
    assert sorted(result.scores) == sorted(first)


def test_the_best_of_many_equal_settings_is_uncertain_and_its_score_too_high() -> None:
    firsts, optimism, excess = [], [], []
    for seed in range(30):
        result = winner(search(lambda s: 0.7, settings(), 0.01, seeds=2, seed=seed), draws=500)
        firsts.append(result.first)
        optimism.append(result.optimism)
        excess.append(max(np.mean(result.scores), np.mean(result.runner_scores)) - 0.7)
    assert np.mean(firsts) < 0.5
    assert np.mean(optimism) > 0.3 * np.mean(excess) > 0


def test_a_clear_winner_is_certain() -> None:
    result = winner(
        search(lambda s: s["lora_rate"] - s["nfz_rate"], settings(widths=(0,)), 1e-3, 3)
    )
    assert result.beats > 0.999
    assert result.first > 0.999


def test_without_repeated_seeds_the_surface_gives_the_noise() -> None:
    rows = search(lambda s: 0.7 + 0.01 * s["lora_rate"], settings(), 0.003)
    assert math.isnan(winner(rows).beats)
    assert winner(rows).source == ""
    result = winner(rows, surface=(0.003, 20))
    assert result.source == "surface"
    assert 0.5 < result.beats < 1


def test_compared_at_equal_epochs_only() -> None:
    rows = search(lambda s: 0.7 + 0.01 * s["lora_rate"], settings(), 0.003)
    result = winner(stop(rows, 1, keep=1))
    assert (result.epochs, result.rivals) == (1, len(settings()) - 1)
    result = winner(stop(rows, 1, keep=3))
    assert (result.epochs, result.rivals) == (4, 2)


def test_one_trial_and_none() -> None:
    result = winner([row(settings()[0], 0.7), failed(settings()[1])])
    assert result.runner_up is None
    assert math.isnan(result.beats)
    assert result.epochs == 4
    for rows in ([], [failed(settings()[0])]):
        with pytest.raises(TooFew, match="No trial"):
            winner(rows)
