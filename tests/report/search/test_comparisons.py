from typing import Any

import numpy as np
import pytest
from planted import RATES, failed, plan, search, settings, stop

from img2prompt.report.search.comparisons import equal_cost, width_effect
from img2prompt.report.search.trial_rows import TooFew

FINE = tuple(n / 10 for n in range(10))


def cost(setting: dict[str, Any]) -> int:
    layers = plan(setting)
    return len(layers["lora"]) + 2 * len(layers["trained"])


def test_the_difference_at_equal_cost_is_the_planted_one() -> None:
    def truth(s: dict[str, Any]) -> float:
        layers = plan(s)
        learning = len(layers["lora"]) + len(layers["trained"])
        # Cost and head width change far more than the planted 0.02 of all LoRA.
        share = len(layers["lora"]) / learning
        return 0.5 + 0.01 * cost(s) + 1e-5 * s["head_width"] + 0.02 * share

    result = equal_cost(search(truth, settings(rates=FINE), noise=0.001), 4)
    assert result.all.difference.value == pytest.approx(0.02, abs=0.002)
    assert result.all.difference.low < 0.02 < result.all.difference.high
    assert result.all.difference.low > 0
    assert len(result.bands) >= 2
    ends = [edge for band in result.bands for edge in band.flop]
    assert ends == sorted(ends)
    assert sum(band.pairs for band in result.bands) <= result.all.pairs


def test_lora_makes_no_difference_where_only_cost_counts() -> None:
    covered = 0
    for seed in range(40):
        rows = search(lambda s: 0.5 + 0.01 * cost(s), settings(rates=FINE, widths=(0,)), 0.003, 1)
        noisy = np.random.default_rng(seed)
        for r in rows:
            for epoch in r["epochs"]:
                epoch["val_cosine"] += 0.003 * noisy.normal()
        difference = equal_cost(rows, 1, samples=300).all.difference
        covered += difference.low <= 0 <= difference.high
    assert covered >= 34


def test_plans_of_unequal_cost_or_other_heads_are_never_pairs() -> None:
    apart = [{"lora_rate": 0.2 * n, "nfz_rate": 0.0, "head_width": 0} for n in range(1, 5)] + [
        {"lora_rate": 0.0, "nfz_rate": 0.1 * n, "head_width": 64} for n in range(1, 10)
    ]
    with pytest.raises(TooFew, match="0 settings have a partner of equal cost"):
        equal_cost(search(lambda s: 0.5, apart), 4)


def test_head_width_is_compared_within_equal_settings() -> None:
    def truth(s: dict[str, Any]) -> float:
        return 0.5 + s["lora_rate"] + 0.01 * (s["head_width"] == 1024)

    chosen = settings(widths=(0, 1024, 4096))
    # Wide heads were tried with the best plans only: raw means would favour them.
    chosen = [s for s in chosen if s["head_width"] < 4096 or s["lora_rate"] >= 0.6]
    result = width_effect(search(truth, chosen, noise=0.001), 4)
    assert result.narrowest == 0
    widths = result.widths
    assert [w.width for w in widths] == [1024, 4096]
    assert widths[0].difference.low < 0.01 < widths[0].difference.high
    assert widths[0].difference.low > 0.005
    assert widths[1].difference.low < 0 < widths[1].difference.high
    assert widths[1].settings < widths[0].settings


def test_paired_interval_is_students() -> None:
    from scipy.stats import ttest_rel

    rows = search(lambda s: 0.5, settings(widths=(0, 64)), noise=0.01)
    score = {(plan_of(r), r["setting"]["head_width"]): r["best"] for r in rows}
    plans = sorted({p for p, _ in score})
    test = ttest_rel([score[p, 64] for p in plans], [score[p, 0] for p in plans])
    low, high = test.confidence_interval(0.95)
    result = width_effect(rows, 4).widths[0].difference
    assert (result.low, result.high) == pytest.approx((low, high))


def plan_of(r: dict[str, Any]) -> tuple[float, float]:
    return r["setting"]["lora_rate"], r["setting"]["nfz_rate"]


def test_too_few_widths() -> None:
    with pytest.raises(TooFew, match="Only one head width"):
        width_effect(search(lambda s: 0.5, settings(widths=(0,))), 4)
    lone = [{"lora_rate": r, "nfz_rate": 0.2, "head_width": int(1000 * r)} for r in RATES[:4]]
    with pytest.raises(TooFew, match="Fewer than two settings"):
        width_effect(search(lambda s: 0.5, lone), 4)
    with pytest.raises(TooFew, match="Only one"):
        width_effect([failed(settings()[0])], 1)


def test_stopped_trials_are_left_out_beyond_their_last_epoch() -> None:
    rows = search(lambda s: 0.5 + 1e-6 * s["head_width"], settings(widths=(0, 64)), 0.001)
    plans = width_effect(rows, 4).widths[0].settings
    assert width_effect(stop(rows, 2, keep=12), 2).widths[0].settings == plans
    assert width_effect(stop(rows, 2, keep=20), 4).widths[0].settings < plans
