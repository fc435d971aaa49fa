from typing import Any

import numpy as np
import pytest
from planted import RATES, failed, row, search, settings

from img2prompt.report.search.effects import Importance, Term, importance
from img2prompt.report.search.trial_rows import TooFew

LR = {"optim__lr": (1e-4, 3e-4, 1e-3)}


def truth(setting: dict[str, Any]) -> float:
    """LoRA linear, unfreezing curved, a product of LoRA and head width; lr without effect."""
    lora, nfz = setting["lora_rate"], setting["nfz_rate"]
    wide = (0, 1024, 4096).index(setting["head_width"]) - 1
    return 0.6 + 0.10 * lora - 0.3 * (nfz - 0.4) ** 2 + 0.06 * (lora - 0.4) * wide


def box() -> list[dict[str, Any]]:
    """Return a whole grid: rates up to 0.4 only, so that no corner is cut off."""
    return settings(rates=(0.1, 0.2, 0.3, 0.4), **LR)


def named(result: Importance) -> dict[tuple[str, ...], Term]:
    return {tuple(sorted(term.names)): term for term in result.terms}


def shares_by_averaging(chosen: list[dict[str, Any]], names: list[str]) -> dict[tuple, float]:
    """Return the ANOVA of a whole grid by its definition: means over all other parameters."""
    scores = np.array([truth(s) for s in chosen])
    effects, total = {(): np.full(len(chosen), scores.mean())}, scores.var()
    for group in [(n,) for n in names] + [(a, b) for a in names for b in names if a < b]:
        labels = [tuple(s[name] for name in group) for s in chosen]
        mean = {x: scores[[y == x for y in labels]].mean() for x in set(labels)}
        own = np.array([mean[x] for x in labels])
        lower = [effects[key] for key in effects if set(key) < set(group)]
        effects[group] = own - np.sum(lower, axis=0)
    return {key: float(effects[key].var() / total) for key in effects if key}


def test_shares_of_a_whole_grid_are_those_of_the_anova_by_averaging() -> None:
    expected = shares_by_averaging(box(), ["head_width", "lora_rate", "nfz_rate", "optim.lr"])
    result = named(importance(search(truth, box(), noise=1e-9), 4))
    assert set(result) == set(expected)
    for names, share in expected.items():
        assert result[names].share.value == pytest.approx(share, abs=1e-6), names
    assert expected["head_width", "lora_rate"] > 0.05


def test_order_and_intervals_with_noise_in_part_of_the_grid() -> None:
    expected = shares_by_averaging(box(), ["head_width", "lora_rate", "nfz_rate", "optim.lr"])
    chosen = [box()[n] for n in np.random.default_rng(0).permutation(len(box()))[:60]]
    result = importance(search(truth, chosen, noise=0.003), 4)
    strong = sorted(expected, key=lambda names: -expected[names])[:3]
    assert [tuple(sorted(term.names)) for term in result.terms[:3]] == strong
    for term in result.terms[:3]:
        assert term.share.low > 0
    signal = np.var([truth(s) for s in box()])
    for names, term in named(result).items():
        planted = expected[names] * signal / (signal + 0.003**2)
        assert term.share.low - 0.02 <= planted <= term.share.high + 0.02, names
    assert result.residual == pytest.approx(0.003, rel=0.3)


def test_a_parameter_without_effect_has_a_share_of_zero() -> None:
    covered, values = 0, []
    for seed in range(60):
        chosen = [box()[n] for n in np.random.default_rng(seed).permutation(len(box()))[:40]]
        term = named(importance(search(truth, chosen, 0.005, seed=seed), 4, samples=200))
        covered += term["optim.lr",].share.low <= 0
        values.append(term["optim.lr",].share.value)
    assert covered >= 57
    assert abs(np.mean(values)) < 0.005  # no share for noise, on average


def test_intervals_cover_the_truth_most_of_the_time() -> None:
    shares = shares_by_averaging(box(), ["head_width", "lora_rate", "nfz_rate", "optim.lr"])
    signal = np.var([truth(s) for s in box()])
    planted = shares["lora_rate",] * signal / (signal + 0.005**2)
    covered = 0
    for seed in range(60):
        term = named(importance(search(truth, box(), 0.005, seed=seed), 4, samples=200))
        covered += term["lora_rate",].share.low <= planted <= term["lora_rate",].share.high
    assert 53 <= covered <= 60


def test_a_cut_off_corner_does_not_turn_curves_into_products() -> None:
    chosen = settings(rates=(0.0, 0.2, 0.4), **LR)

    def additive(s: dict[str, Any]) -> float:
        return 0.6 + 0.1 * s["lora_rate"] - 0.3 * (s["nfz_rate"] - 0.1) ** 2

    result = named(importance(search(additive, chosen, noise=0.0005), 4))
    assert result["lora_rate", "nfz_rate"].share.value < 0.01
    assert result["lora_rate",].share.low > 0.3


def test_repeated_seeds_narrow_the_intervals_and_give_the_share_of_seeds() -> None:
    chosen = settings(rates=RATES[:3])
    once = importance(search(truth, chosen, noise=0.004), 4)
    thrice = importance(search(truth, chosen, noise=0.004, seeds=5), 4)
    wide, narrow = (t.share.high - t.share.low for t in (once.terms[0], thrice.terms[0]))
    assert narrow < wide
    assert np.isnan(once.seeds)
    assert 0 < thrice.seeds < 0.3
    assert thrice.settings == len(chosen)


def test_categories_and_the_order_of_rows() -> None:
    chosen = settings(rates=(0.2, 0.4), widths=(0, 64), loss=("cosine", "mse", "both"))
    rows = search(lambda s: 0.1 * (s["loss"] == "mse") + 0.01 * s["lora_rate"], chosen, 0.001)
    result = importance(rows, 4)
    assert result.terms[0].names == ("loss",)
    assert result.terms[0].share.value > 0.95
    assert importance(rows[::-1], 4).terms[0].share.value == pytest.approx(
        result.terms[0].share.value
    )


def test_stopped_trials_count_at_equal_epochs_only() -> None:
    rows = search(truth, box(), noise=1e-9)
    # The same trials, the worse ones shorter: their last scores would give other shares.
    short = [row(r["setting"], r["best"], epochs=1 + 3 * (n < 30)) for n, r in enumerate(rows)]
    full, early = named(importance(rows, 4)), named(importance(short, 1))
    for names, term in full.items():
        assert early[names].share.value == pytest.approx(term.share.value, abs=1e-6)
    assert importance(short, 4).settings == 30


def test_fewer_trials_give_a_simpler_surface_and_then_none() -> None:
    order = np.random.default_rng(1).permutation(len(box()))
    chosen = [box()[n] for n in order]
    assert "curved" in importance(search(truth, chosen[:40]), 4).model
    assert "product" in importance(search(truth, chosen[:20]), 4).model
    assert "linear effects only" in importance(search(truth, chosen[:12]), 4).model
    with pytest.raises(
        TooFew, match=r"5 settings are too few for parameters lora_rate, .*optim.lr; 10 are"
    ):
        importance(search(truth, chosen[:5]), 4)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (search(truth, box()[:1]), "No parameter has more than one value"),
        ([failed(box()[0])], "No parameter"),
        (search(lambda s: 0.5, box()), "same score"),
        (search(truth, [s | {"rank": s["lora_rate"] * 40} for s in box()]), "rank always changed"),
    ],
)
def test_too_few_settings_raise_with_the_reason(rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(TooFew, match=said):
        importance(rows, 4)
