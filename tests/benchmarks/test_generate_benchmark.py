"""Run the benchmark of the generate stage on a tiny size."""

import generate
import pytest


@pytest.mark.benchmark
@pytest.mark.ray
@pytest.mark.slow
def test_the_stage_is_compared_with_the_bare_pipeline(
    cluster, capsys: pytest.CaptureFixture
) -> None:
    options = generate.Options(
        channels=(4, 8), side=32, steps=1, batch_size=2, pictures_per_shard=8, shards=3, largest=2
    )
    rates = generate.run(options)
    assert min(rates.values()) > 0
    assert "pictures of 32 px, 1 steps" in capsys.readouterr().out
