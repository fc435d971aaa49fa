import numpy as np
import pytest
from scipy import stats
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


def interval_by_matrices(means: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Reference interval of the mean over rows, from the matrices of the quadratic form."""
    count, weights = len(means), sizes / sizes.sum()
    residuals = np.eye(count) - weights  # (I - 1 w'), rows of residuals
    covariance = residuals @ residuals.T
    shares = weights**2 / np.diag(covariance)
    variance = shares @ (residuals @ means) ** 2
    product = np.diag(shares) @ covariance
    freedom = np.trace(product) ** 2 / np.trace(product @ product)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    return weights @ means - half, weights @ means + half


@pytest.mark.parametrize("sizes", [[1, 1], [1, 7], [3, 3, 3], [1, 2, 9, 40], list(range(1, 31))])
def test_interval_equals_that_of_its_matrices(sizes: list[int]) -> None:
    rng = np.random.default_rng(len(sizes))
    clusters = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    cosines = (
        0.3 + 0.01 * rng.normal(size=len(sizes))[clusters] + 0.01 * rng.normal(size=sum(sizes))
    )
    means = np.array([cosines[clusters == label].mean() for label in range(len(sizes))])
    score = mean_cosine_interval(cosines, clusters)
    assert score.mean == pytest.approx(cosines.mean(), abs=1e-12)
    assert (score.rows, score.groups) == (sum(sizes), len(sizes))
    low, high = interval_by_matrices(means, np.array(sizes))
    assert (score.low, score.high) == pytest.approx((max(low, -1), min(high, 1)), abs=1e-9)


def test_interval_of_equal_clusters_is_that_of_the_t_test() -> None:
    means = np.array([0.41, 0.46, 0.52, 0.44])
    score = mean_cosine_interval(np.repeat(means, 3), np.repeat(np.arange(4), 3))
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_rows_of_one_cluster_are_not_independent() -> None:
    rng = np.random.default_rng(1)
    clusters = rng.integers(60, size=400)
    cosines = 0.5 + 0.1 * rng.normal(size=60)[clusters] + 0.02 * rng.normal(size=400)
    score, alone = (mean_cosine_interval(cosines, c) for c in (clusters, np.arange(400)))
    assert score.high - score.low > 1.5 * (alone.high - alone.low)


def percentile_bootstrap(sums: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> tuple:
    """The method before: 95 % of the means of resampled clusters."""
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=200)
    return tuple(np.percentile(drawn @ sums / (drawn @ sizes), [2.5, 97.5]))


EFFECTS = {
    "normal": lambda rng, count: 0.5 + 0.05 * rng.normal(size=count),
    "skewed": lambda rng, count: 0.5 + 0.04 * (2 - rng.gamma(2, 1, count)),
}
"""Cluster means whose expectation is 0.5. Cosines have a long tail to the left."""


def coverage(groups: int, effect: str, sizes: str, runs: int) -> tuple[float, float]:
    """Return the share of intervals that hold 0.5: ours, and those of the bootstrap."""
    rng = np.random.default_rng(groups)
    ours = theirs = 0
    for run in range(runs):
        rows = np.full(groups, 4) if sizes == "equal" else rng.geometric(0.3, groups)
        means = EFFECTS[effect](rng, groups)
        clusters = np.repeat(np.arange(groups), rows)
        cosines = means[clusters] + 0.02 * rng.normal(size=len(clusters))
        score = mean_cosine_interval(cosines, clusters)
        ours += score.low <= 0.5 <= score.high
        if run % 4 == 0:
            low, high = percentile_bootstrap(np.bincount(clusters, cosines), rows, rng)
            theirs += low <= 0.5 <= high
    return ours / runs, 4 * theirs / runs


@pytest.mark.parametrize("groups", [2, 3, 5, 10, 27])
def test_intervals_hold_their_level_with_few_clusters(groups: int) -> None:
    for effect in EFFECTS:
        for sizes in ("equal", "unequal"):
            ours, bootstrap = coverage(groups, effect, sizes, runs=600)
            least = 0.93 if effect == "normal" else 0.91
            assert ours > least, (effect, sizes, ours)
            assert groups > 3 or bootstrap < 0.87, (effect, sizes, bootstrap)


def test_labels_may_be_names() -> None:
    rng = np.random.default_rng(3)
    cosines, clusters = rng.uniform(size=90), rng.integers(30, size=90)
    names = np.array([f"group {label:02d}" for label in clusters])
    assert mean_cosine_interval(cosines, names) == mean_cosine_interval(cosines, clusters)


def test_many_clusters_have_the_normal_interval() -> None:
    cosines = np.random.default_rng(4).uniform(size=50_000)
    score = mean_cosine_interval(cosines, np.arange(50_000))
    expected = 1.96 * cosines.std() / np.sqrt(50_000)
    assert (score.high - score.low) / 2 == pytest.approx(expected, rel=1e-3)


def test_a_single_cluster_gives_the_whole_range() -> None:
    values, clusters = np.array([0.4, 0.6]), np.array([5, 5])
    assert mean_cosine_interval(values, clusters) == Score(0.5, -1.0, 1.0, 2, 1)
    assert mean_cosine_interval(values, clusters, limit=2) == Score(0.5, -2.0, 2.0, 2, 1)


def test_intervals_end_at_the_limit() -> None:
    score = mean_cosine_interval(np.array([0.1, 0.9]), np.array([0, 1]))
    assert (score.low, score.high) == (-1.0, 1.0)


def test_by_source() -> None:
    rng = np.random.default_rng(5)
    cosines, clusters = rng.uniform(size=60), rng.integers(20, size=60)
    sources = ["b", "a", "a"] * 20
    scores = by_source(cosines, clusters, sources)
    assert list(scores) == ["a", "b"]
    chosen = np.array(sources) == "a"
    assert scores["a"] == mean_cosine_interval(cosines[chosen], clusters[chosen])
    assert scores["a"].rows == 40
