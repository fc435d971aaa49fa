"""Run the benchmark of searches on a tiny size; the published figures are measured by hand."""

from typing import Any

import numpy as np
import pytest
import search

from img2prompt.model.towers.build import read_shape
from img2prompt.search.space import space_of
from img2prompt.train.job import TrainInputs

OPTIONS = search.Options(rates=(0.0, 0.15, 0.3, 0.45), epochs=6, orders=6, reduction=3)


def planted(repeats: int) -> list[dict[str, Any]]:
    """Return rows of a grid in which more trained layers are better; seeds differ by 0.01."""
    config = search.grid_of(OPTIONS)
    space = space_of(config, read_shape(config.base.tower).depth)
    rows = []
    for repeat in range(repeats):
        for setting in space.settings:
            top = 0.5 + setting.nfz_rate - 0.1 * setting.lora_rate + 0.01 * repeat
            scores = [top - 0.1 / epoch for epoch in range(1, OPTIONS.epochs + 1)]
            epochs = [{"epoch": n, "val_cosine": score} for n, score in enumerate(scores, 1)]
            rows.append(
                {
                    "name": setting.name,
                    "setting": setting.to_dict(),
                    "seed": config.base.seed + repeat,
                    "rows": 100 * len(epochs),
                    "best": scores[-1],
                    "epochs": epochs,
                }
            )
    return rows


def test_searches_stay_within_their_share_of_the_grid(capsys) -> None:
    rows = planted(repeats=2)
    results = search.compare(OPTIONS, search.grid_of(OPTIONS), rows)
    assert results["spread"] == pytest.approx(0.01 / 2**0.5)
    assert results["grid"] == pytest.approx(max(row["best"] for row in rows[:15]))
    budget = int(0.2 * 15 * OPTIONS.epochs)
    for name in search.STRATEGIES:
        assert 0 < results[name]["epochs"] <= budget
        assert max(results[name]["scores"]) <= results["grid"]
    assert results["random"]["epochs"] == budget
    curves = {tuple(epoch["val_cosine"] for epoch in row["epochs"]) for row in rows[:15]}
    seen = {score for curve in curves for score in curve}
    assert set(results["ASHA"]["scores"]) <= seen
    # A third of the settings, all at random: one of the three best is among them 65 % of the time.
    assert np.mean(results["one-epoch"]["scores"]) > np.mean(results["random"]["scores"])
    printed = capsys.readouterr().out
    assert "15 plans, 6 epochs; spread between seeds 0.0071; 6 orders" in printed
    assert "TPE, ASHA" in printed


@pytest.mark.benchmark
@pytest.mark.ray
@pytest.mark.slow
def test_seconds_of_a_trial_are_printed(cluster, prepared, embedded, tiny_tower, tmp_path, capsys):
    options = search.Options(
        out=str(tmp_path),
        tower=tiny_tower,
        rates=(0.0, 0.25),
        batch_size=16,
        overhead_trials=2,
        epochs=1,
    )
    seconds = search.overhead(options, TrainInputs(prepared.shards, embedded))
    assert len(seconds) == 5
    assert min(seconds.values()) > 0
    printed = capsys.readouterr().out
    assert "bare process: model and engine" in printed
    assert "more than bare" in printed
