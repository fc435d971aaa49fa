import numpy as np
import pytest
from sklearn.metrics.pairwise import paired_distances

from img2prompt.data.vectors import unit_rows
from img2prompt.predict.metrics import Score, by_source, cosine, mean_cosine_interval


def test_cosine_of_rows_of_any_length_equals_sklearn() -> None:
    rng = np.random.default_rng(0)
    pred = rng.normal(size=(50, 384)) * rng.uniform(0.01, 100, size=(50, 1))
    target = rng.normal(size=(50, 384)).astype(np.float32)
    expected = 1 - paired_distances(pred, target.astype(np.float64), metric="cosine")
    np.testing.assert_allclose(cosine(pred, target), expected, atol=1e-12)
    np.testing.assert_allclose(cosine(pred, -pred), -1, atol=1e-12)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_bad_row_is_named(bad: float) -> None:
    rows = np.ones((4, 3))
    broken = rows.copy()
    broken[2] = bad
    with pytest.raises(ValueError, match=r"pred: row 2 has length"):
        cosine(broken, rows)
    with pytest.raises(ValueError, match=r"target: row 2 has length"):
        cosine(rows, broken)


def test_other_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), target \(3, 3\)"):
        cosine(np.ones((2, 3)), np.ones((3, 3)))


def test_unit_rows_of_tiny_and_huge_vectors() -> None:
    rows = np.array([[3e-40, 4e-40], [3e100, 4e100]])
    np.testing.assert_allclose(unit_rows(rows), [[0.6, 0.8]] * 2, rtol=1e-12)


def bootstrap_by_hand(cosines: np.ndarray, clusters: np.ndarray, samples: int) -> tuple:
    rng = np.random.default_rng(7)
    parts = [cosines[clusters == label] for label in np.unique(clusters)]
    means = [
        np.concatenate([parts[n] for n in rng.integers(len(parts), size=len(parts))]).mean()
        for _ in range(samples)
    ]
    return tuple(np.percentile(means, [2.5, 97.5]))


def test_interval_equals_a_bootstrap_by_hand() -> None:
    rng = np.random.default_rng(1)
    clusters = rng.integers(60, size=400)
    cosines = 0.5 + 0.1 * rng.normal(size=60)[clusters] + 0.02 * rng.normal(size=400)
    score = mean_cosine_interval(cosines, clusters, samples=4000, seed=0)
    low, high = bootstrap_by_hand(cosines, clusters, 4000)
    assert score.mean == pytest.approx(cosines.mean(), abs=1e-12)
    assert score.rows == 400
    assert (score.low, score.high) == pytest.approx((low, high), abs=2e-3)
    # Pictures taken one by one would promise far too much.
    alone = mean_cosine_interval(cosines, np.arange(400), samples=4000, seed=0)
    assert score.high - score.low > 1.5 * (alone.high - alone.low)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        effects = 0.1 * rng.normal(size=50)
        cosines = 0.5 + np.repeat(effects, 4) + 0.02 * rng.normal(size=200)
        score = mean_cosine_interval(cosines, np.repeat(np.arange(50), 4), 500, seed)
        covered += score.low <= 0.5 <= score.high
    assert 175 <= covered <= 199


def test_interval_depends_on_the_seed_only() -> None:
    rng = np.random.default_rng(3)
    cosines, clusters = rng.uniform(size=90), rng.integers(30, size=90)
    first = mean_cosine_interval(cosines, clusters, 300, seed=1)
    assert mean_cosine_interval(cosines, clusters, 300, seed=1) == first
    assert mean_cosine_interval(cosines, clusters, 300, seed=2) != first
    names = np.array([f"group {label:02d}" for label in clusters])
    assert mean_cosine_interval(cosines, names, 300, seed=1) == first


def test_many_clusters_are_drawn_in_parts() -> None:
    cosines = np.random.default_rng(4).uniform(size=50_000)
    score = mean_cosine_interval(cosines, np.arange(50_000), samples=200, seed=0)
    expected = 1.96 * cosines.std() / np.sqrt(50_000)
    assert (score.high - score.low) / 2 == pytest.approx(expected, rel=0.2)


def test_a_single_cluster_gives_the_whole_range() -> None:
    score = mean_cosine_interval(np.array([0.4, 0.6]), np.array([5, 5]), 100, seed=0)
    assert score == Score(0.5, -1.0, 1.0, 2)


def test_by_source() -> None:
    rng = np.random.default_rng(5)
    cosines, clusters = rng.uniform(size=60), rng.integers(20, size=60)
    sources = ["b", "a", "a"] * 20
    scores = by_source(cosines, clusters, sources, 200, seed=0)
    assert list(scores) == ["a", "b"]
    chosen = np.array(sources) == "a"
    assert scores["a"] == mean_cosine_interval(cosines[chosen], clusters[chosen], 200, seed=0)
    assert scores["a"].rows == 40
