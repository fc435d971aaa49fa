import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from img2prompt.predictors.neighbours import NearestPrompts, knn_targets


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_search_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(200, 384)), rng.normal(size=(7, 384)) * 9
    prompts = [f"prompt {number}" for number in range(200)]
    found = NearestPrompts(vectors.astype(np.float32), prompts).search(queries, k=4)
    cosine = unit(queries) @ unit(vectors).T
    for row, pairs in enumerate(found):
        order = np.argsort(-cosine[row])[:4]
        assert [prompt for prompt, _ in pairs] == [prompts[number] for number in order]
        assert [value for _, value in pairs] == pytest.approx(cosine[row, order], abs=1e-5)


def test_fewer_prompts_than_asked_for() -> None:
    found = NearestPrompts(np.eye(3), ["a", "b", "c"]).search(np.array([[1.0, 0.5, 0]]), k=9)
    assert [prompt for prompt, _ in found[0]] == ["a", "b", "c"]


def test_real_prompts_find_themselves(shared_data) -> None:
    from img2prompt.model.text import PromptEncoder

    lines = (shared_data / "prompts" / "real_prompts.txt").read_text().splitlines()
    prompts = list(dict.fromkeys(lines))[:60]
    vectors = PromptEncoder().encode(prompts)
    found = NearestPrompts(vectors, prompts).search(vectors[::3] * 2, k=1)
    assert [pairs[0][0] for pairs in found] == prompts[::3]
    assert [pairs[0][1] for pairs in found] == pytest.approx(np.ones(20), abs=1e-5)


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_a_bad_query_is_named(bad: float) -> None:
    queries = np.eye(3)
    queries[1] = bad
    with pytest.raises(ValueError, match="queries: row 1"):
        NearestPrompts(np.eye(3), ["a", "b", "c"]).search(queries, k=1)
    with pytest.raises(ValueError, match=r"vectors\[0:\]: row 1"):
        NearestPrompts(queries, ["a", "b", "c"])


def test_texts_and_vectors_must_match() -> None:
    with pytest.raises(ValueError, match="3 vectors for 2 prompts"):
        NearestPrompts(np.eye(3), ["a", "b"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("queries", [3, 1500])
def test_knn_targets_equal_sklearn(dtype: type, queries: int) -> None:
    rng = np.random.default_rng(1)
    train = (rng.normal(size=(80, 16)) + 1).astype(dtype)
    features = (rng.normal(size=(queries, 16)) + 1).astype(dtype)
    targets = unit(rng.normal(size=(80, 384))).astype(np.float32)
    wide = unit(train.astype(np.float64)), unit(features.astype(np.float64))
    distance, rows = (
        NearestNeighbors(n_neighbors=5, metric="cosine").fit(wide[0]).kneighbors(wide[1])
    )
    expected = unit(((1 - distance)[:, :, None] * targets[rows]).sum(axis=1))
    found = knn_targets(train, targets, features, k=5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_knn_with_one_neighbour_copies_its_target() -> None:
    rng = np.random.default_rng(2)
    train = rng.normal(size=(30, 8))
    targets = unit(rng.normal(size=(30, 384)))
    np.testing.assert_allclose(knn_targets(train, targets, 5 * train, k=1), targets, atol=1e-6)


def test_knn_with_more_neighbours_than_rows_and_opposite_features() -> None:
    train, targets = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0, 0], [0, 1, 0]])
    found = knn_targets(train, targets, np.array([[2.0, 0], [-1, -1]]), k=50)
    np.testing.assert_allclose(found[0], [1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(found[1], [np.sqrt(0.5), np.sqrt(0.5), 0], atol=1e-6)
