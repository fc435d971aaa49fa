"""Run the benchmarks of results on tiny sizes; the published figures are measured by hand."""

from pathlib import Path

import composed
import numpy as np
import pytest
import submission

SUBJECTS = ["red fox", "old castle", "tiny robot", "blue sea", "sleeping cat", "paper boat"]
PLACES = ["in the rain", "at night", "on a table", "in the snow", "by a lake"]
STYLES = ["oil painting", "pencil sketch", "photo", "watercolor"]


def test_composed_prompts_are_compared_with_greedy_search(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lines = [f"a {a} {b}, {c}" for a in SUBJECTS for b in PLACES for c in STYLES]
    (tmp_path / "real_prompts.txt").write_text("\n".join(lines))
    (tmp_path / "flavors.txt").write_text("\n".join([*PLACES, *STYLES]))
    options = composed.Options(
        prompts=tmp_path, pictures=6, greedy_pictures=2, candidates=4, shortlist=9, duplicate=0.99
    )
    result = composed.run(options)
    assert result["composed"][0] >= result["nearest"][0]
    assert result["composed"][0] > result["greedy"][0] - 0.02
    assert "composed against greedy" in capsys.readouterr().out


def test_noisy_vectors_have_the_wanted_cosine() -> None:
    truths = np.random.default_rng(0).normal(size=(20, 384))
    truths /= np.linalg.norm(truths, axis=1, keepdims=True)
    vectors = composed.noisy(truths, 0.7, np.random.default_rng(1))
    np.testing.assert_allclose(np.sum(vectors * truths, axis=1), 0.7, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_submissions_are_compared_with_a_row_by_row_writer(capsys: pytest.CaptureFixture) -> None:
    assert submission.run(submission.Options(pictures=50)) > 0
    assert "row by row, checked" in capsys.readouterr().out
