"""Run the data benchmarks on tiny sizes; the published figures are measured by hand."""

from pathlib import Path

import features
import host_side
import memory
import numpy as np
import pytest
import scaling

ABSENT = Path("absent")


def test_host_side_compares_equal_pictures(capsys: pytest.CaptureFixture) -> None:
    options = host_side.Options(pictures=ABSENT, count=2, side=96, size=64, repeats=1)
    rates = host_side.run(options)
    assert set(rates) == {"JPEG", "PNG", "WEBP"}
    assert all(rate > 0 for row in rates.values() for rate in row.values())
    assert "2 pictures of 96 px to 64 px" in capsys.readouterr().out
    picture = host_side.base(options)[0]
    (data,) = host_side.encoded([picture], "PNG")
    other = host_side.ours(64)(data) // 2
    with pytest.raises(AssertionError, match="levels apart"):
        host_side.check_same(other, host_side.ours(64)(data))


@pytest.mark.benchmark
@pytest.mark.ray
def test_features_are_those_of_the_bare_model_and_of_transformers(
    cluster, capsys: pytest.CaptureFixture
) -> None:
    options = features.Options(
        rows=24, rows_per_shard=8, batch_size=8, size=32, layers=1, width=64, theirs=6
    )
    rates = features.run(options)
    assert len(rates) == 6
    # With so few pictures there may be no moment in which all actors work.
    assert min(rate for name, rate in rates.items() if name != "stage") > 0
    assert "24 pictures of 32 px" in capsys.readouterr().out
    some = np.eye(3)
    with pytest.raises(AssertionError, match="other: cosine 0"):
        features.check_same(some, some[::-1].copy(), "other")


@pytest.mark.benchmark
@pytest.mark.ray
def test_rate_of_sleeping_actors_counts_while_all_work(cluster) -> None:
    options = scaling.Options(actors=(1, 2), seconds=0.05, batch_size=4, batches=4, free_rows=100)
    rates = scaling.run(options)
    assert set(rates) == {0, 1, 2}
    assert 0 < rates[1] <= 1.05 * 4 / 0.05
    assert rates[0] > 0
    # Two actors, batches of two rows a second each; the second begins a second later.
    rows = [(start + own, start + own + 1, own) for own in (0, 1) for start in range(3)]
    stamps = np.repeat(np.array(rows, float), 2, axis=0)
    assert scaling.steady_rate(stamps) == pytest.approx(4)


@pytest.mark.benchmark
@pytest.mark.ray
def test_memory_peaks_are_measured_and_all_rows_arrive(
    cluster, capsys: pytest.CaptureFixture
) -> None:
    measured = memory.run(memory.Options(rows=(1000,), pictures=20))
    assert set(measured[1000]) == {"shards", "features"}
    for peaks in measured[1000].values():
        assert min(peaks.worker, peaks.store, peaks.driver) > 1
    assert "1,000" in capsys.readouterr().out
