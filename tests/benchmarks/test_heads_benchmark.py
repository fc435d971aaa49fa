"""Run the benchmark of heads on a tiny size; the published figures are measured by hand."""

import heads
import pytest


@pytest.mark.benchmark
@pytest.mark.ray
@pytest.mark.slow
def test_heads_in_one_pass_equal_separate_trainings(cluster, capsys: pytest.CaptureFixture) -> None:
    options = heads.Options(
        widths=(0,),
        dropouts=(0.2,),
        lrs=(5e-3,),
        rows=48,
        val_rows=8,
        feature=64,
        batch_size=16,
        epochs=2,
    )
    assert heads.run(options) > 0
    assert "1 heads, 2 epochs of 48 features of 64" in capsys.readouterr().out


def test_a_head_with_another_score_is_refused() -> None:
    history = [{"epoch": 1, "train_loss": 0.5, "val_cosine": 0.3}]
    heads.check_same({"a": history}, {"a": history})
    with pytest.raises(AssertionError, match=r"a, epoch 1: val_cosine is 0\.1 apart"):
        heads.check_same({"a": [history[0] | {"val_cosine": 0.4}]}, {"a": history})
