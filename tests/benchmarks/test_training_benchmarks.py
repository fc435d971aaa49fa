"""Run the training benchmarks on tiny sizes; the published figures are measured by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import gpu
import gpu_tower
import probe
import pytest
import recipe
import training
import training_runs

pytestmark = pytest.mark.slow

ABSENT = Path("absent")


@pytest.mark.benchmark
@pytest.mark.ray
def test_the_stage_ends_with_the_loss_of_the_bare_loop(
    cluster, capsys: pytest.CaptureFixture
) -> None:
    options = training.Options(
        workers=(1,),
        steps=4,
        warmup=1,
        batch_size=4,
        size=32,
        layers=2,
        width=64,
        precision="fp32",
        pictures=ABSENT,
    )
    shares = training.run(options)
    assert set(shares) == {1}
    assert shares[1] > 0
    assert "4 steps of 4 pictures of 32 px" in capsys.readouterr().out


def test_another_loss_is_refused() -> None:
    run = training_runs.Trained(1.0, 0.5, 0.1)
    training_runs.check_same(run, run, 1e-4, "same")
    with pytest.raises(AssertionError, match="other: loss is"):
        training_runs.check_same(replace(run, loss=0.6), run, 1e-4, "other")


def test_the_rate_leaves_out_the_first_line() -> None:
    lines = [{"step": 2, "images_per_s": 1.0}, {"step": 4, "images_per_s": 8.0}]
    assert training.rate_after_first(lines, 16) == pytest.approx(8)
    assert training.rate_after_first(lines[:1], 16) == pytest.approx(1)


@pytest.mark.benchmark
@pytest.mark.ray
def test_a_cached_probe_equals_that_of_the_running_tower(
    cluster, capsys: pytest.CaptureFixture
) -> None:
    options = probe.Options(
        rows=32, batch_size=8, epochs=2, size=32, layers=1, width=64, pictures=ABSENT
    )
    rates = probe.run(options)
    assert min(rates.values()) > 0
    assert "32 pictures of 32 px" in capsys.readouterr().out
    history = [{"train_loss": 0.9, "val_cosine": 0.1}]
    with pytest.raises(AssertionError, match="epoch 1: val_cosine is"):
        probe.check_same([history[0] | {"val_cosine": 0.2}], history)


@pytest.mark.benchmark
@pytest.mark.ray
def test_the_stage_ends_with_the_loss_of_the_recipe(cluster, capsys: pytest.CaptureFixture) -> None:
    options = recipe.Options(
        steps=2,
        batch_size=4,
        size=28,
        layers=2,
        trained=1,
        width=64,
        sharing=("ddp", "2"),
        pictures=ABSENT,
    )
    rates, shared = recipe.run(options)
    assert min(rates.values()) > 0
    assert set(shared) == {"ddp", "2"}
    assert all(min(each.rate, each.peak) > 0 for each in shared.values())
    printed = capsys.readouterr().out
    assert "times the recipe" in printed
    assert "memory of a worker" in printed


def test_the_gpu_benchmark_runs_on_a_cpu(capsys: pytest.CaptureFixture) -> None:
    options = gpu_tower.Options(
        sizes=(28,),
        layers=1,
        width=64,
        plans=("full",),
        ways=("eager",),
        embed_batch=2,
        train_batch=2,
        steps=1,
        warmup=1,
        vectors=(600,),
        checked=300,
    )
    gpu.run(options)
    printed = capsys.readouterr().out
    for part in ("features, batches of 2", "training, batches of 2", "near duplicates at 0.85"):
        assert part in printed
    assert "could not be run" not in printed
    assert 0.2 < 1 - len(gpu.kept_plainly(gpu.clustered(300), 0.85)) / 300 < 0.4


def test_a_missing_package_is_reported(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "img2prompt.data.images", None)
    monkeypatch.delattr("img2prompt.data.images")
    gpu.run(gpu_tower.Options(parts=("features",), sizes=(28,), layers=1, width=64))
    assert "features could not be run here" in capsys.readouterr().out
