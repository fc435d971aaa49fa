import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from small_artifacts import pixels_of, write_features, write_shards

from img2prompt.config.tower import TowerConfig
from img2prompt.data.vectors import matrix
from img2prompt.errors import UserError
from img2prompt.model.towers.build import open_tower
from img2prompt.predictors.cached import has_views, read_view
from img2prompt.predictors.neighbours import (
    NearestNeighbours,
    NearestPrompts,
    NeighbourPredictor,
)

CPU = torch.device("cpu")


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_search_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(200, 384)), rng.normal(size=(7, 384)) * 9
    prompts = [f"prompt {number}" for number in range(200)]
    matches = NearestPrompts(vectors.astype(np.float32), prompts).search(queries, k=4)
    cosine = unit(queries) @ unit(vectors).T
    for row, pairs in enumerate(matches):
        order = np.argsort(-cosine[row])[:4]
        assert [prompt for prompt, _ in pairs] == [prompts[number] for number in order]
        assert [value for _, value in pairs] == pytest.approx(cosine[row, order], abs=1e-5)


def test_all_prompts_are_returned_when_there_are_fewer_than_k() -> None:
    matches = NearestPrompts(np.eye(3), ["a", "b", "c"]).search(np.array([[1.0, 0.5, 0]]), k=9)
    assert [prompt for prompt, _ in matches[0]] == ["a", "b", "c"]


def test_real_prompts_find_themselves(shared_data) -> None:
    from img2prompt.model.text import PromptEncoder

    lines = (shared_data / "prompts" / "real_prompts.txt").read_text().splitlines()
    prompts = list(dict.fromkeys(lines))[:60]
    vectors = PromptEncoder().encode(prompts)
    matches = NearestPrompts(vectors, prompts).search(vectors[::3] * 2, k=1)
    assert [pairs[0][0] for pairs in matches] == prompts[::3]
    assert [pairs[0][1] for pairs in matches] == pytest.approx(np.ones(20), abs=1e-5)


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


def predict(train: np.ndarray, targets: np.ndarray, features: np.ndarray, k: int) -> np.ndarray:
    return NeighbourPredictor(train, targets, k).predict(torch.from_numpy(features)).vectors


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("queries", [3, 1500])
def test_k_nearest_neighbours_equal_sklearn(dtype: type, queries: int) -> None:
    rng = np.random.default_rng(1)
    train = (rng.normal(size=(80, 16)) + 1).astype(dtype)
    features = (rng.normal(size=(queries, 16)) + 1).astype(dtype)
    targets = unit(rng.normal(size=(80, 384))).astype(np.float32)
    wide = unit(train.astype(np.float64)), unit(features.astype(np.float64))
    distance, rows = (
        NearestNeighbors(n_neighbors=5, metric="cosine").fit(wide[0]).kneighbors(wide[1])
    )
    expected = unit(((1 - distance)[:, :, None] * targets[rows]).sum(axis=1))
    vectors = predict(train, targets, features, k=5)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=2e-5)


def test_one_neighbour_gives_its_target() -> None:
    rng = np.random.default_rng(2)
    train = rng.normal(size=(30, 8))
    targets = unit(rng.normal(size=(30, 384)))
    np.testing.assert_allclose(predict(train, targets, 5 * train, k=1), targets, atol=1e-6)


def test_more_neighbours_than_rows_and_opposite_features() -> None:
    train, targets = np.array([[1.0, 0], [0, 1]]), np.eye(2, 384)
    vectors = predict(train, targets, np.array([[2.0, 0], [-1, -1]]), k=50)
    np.testing.assert_allclose(vectors[0, :2], [1, 0], atol=1e-5)
    np.testing.assert_allclose(vectors[1, :2], [np.sqrt(0.5), np.sqrt(0.5)], atol=1e-6)
    np.testing.assert_array_equal(vectors[:, 2:], 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_cost_their_picture_alone(bad: float) -> None:
    rng = np.random.default_rng(3)
    train, targets = rng.normal(size=(9, 4)), unit(rng.normal(size=(9, 384)))
    features = rng.normal(size=(3, 4))
    good = predict(train, targets, features, k=2)
    features[1, 2] = bad
    vectors = predict(train, targets, features, k=2)
    np.testing.assert_array_equal(vectors[[0, 2]], good[[0, 2]])
    assert np.isnan(vectors[1]).all()


@pytest.fixture(scope="module")
def spec(tiny_tower: str, tmp_path_factory: pytest.TempPathFactory) -> NearestNeighbours:
    folder = tmp_path_factory.mktemp("neighbours")
    shards = write_shards(folder / "shards")
    features = write_features(folder / "features", shards, tiny_tower)
    return NearestNeighbours(features, shards, neighbours=3, name="neighbours")


def by_hand(spec: NearestNeighbours, pixels: torch.Tensor) -> np.ndarray:
    """Vectors of the three most similar training pictures, each compared as it is, unflipped."""
    tower = open_tower(TowerConfig.from_json(json.dumps(spec.features.config["tower"]))).eval()
    train = unit(tower(pixels_of(spec.shards, "train")).double().numpy())
    targets = matrix(spec.shards.read_tables("train/", ["target"])["target"])
    cosines = unit(tower(pixels).double().numpy()) @ train.T
    nearest = np.argsort(-cosines, axis=1)[:, :3]
    weights = np.take_along_axis(cosines, nearest, axis=1)
    return unit((weights[:, :, None] * targets[nearest]).sum(axis=1))


@torch.inference_mode()
def test_pictures_are_answered_from_the_plain_view_of_training_pictures(
    spec: NearestNeighbours,
) -> None:
    pixels = pixels_of(spec.shards, "test")
    vectors = spec.load(CPU).predict(pixels).vectors
    np.testing.assert_allclose(vectors, by_hand(spec, pixels), atol=2e-3)


@torch.inference_mode()
def test_cached_features_replace_pictures(spec: NearestNeighbours) -> None:
    assert spec.reads_features(spec.features)
    ids, cached = read_view(spec.features, "test", "plain")
    assert ids == spec.shards.read_tables("test/", ["id"])["id"].to_pylist()
    vectors = spec.load_head(CPU).predict(torch.from_numpy(cached)).vectors
    expected = spec.load(CPU).predict(pixels_of(spec.shards, "test")).vectors
    np.testing.assert_allclose(vectors, expected, atol=2e-3)


def test_a_flipped_view_is_read_alone(spec: NearestNeighbours) -> None:
    assert has_views(spec.features, ("flip", "plain"))
    plain, flip = (read_view(spec.features, "train", view) for view in ("plain", "flip"))
    assert plain[0] == flip[0]
    assert plain[1].shape == flip[1].shape == (12, 32)
    assert abs(plain[1] - flip[1]).max() > 0.01


def test_other_shards_and_another_tower_are_refused(
    spec: NearestNeighbours, tmp_path: Path
) -> None:
    spec.check(spec.shards)
    assert spec.fingerprints() == {"features": spec.features.fingerprint}
    with pytest.raises(UserError, match="was made from other shards"):
        spec.check(write_shards(tmp_path, seed=1))
    inputs = {**spec.features.inputs, "tower": "0" * 16}
    foreign = dataclasses.replace(spec.features, inputs=inputs)
    assert not spec.reads_features(foreign)
    with pytest.raises(UserError, match="was made by a tower with fingerprint 0000"):
        dataclasses.replace(spec, features=foreign).check(spec.shards)


def test_csls_lists_hubs_later() -> None:
    """A hub near to all prompts of a ring is first for every query; CSLS puts the own one first."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack([0.5 * np.cos(angles), 0.5 * np.sin(angles), np.full(12, 0.75**0.5)], axis=1)
    hub = np.array([[0.0, 0.0, 1.0]])
    vectors, names = np.concatenate([hub, ring]), ["hub", *map(str, range(12))]
    queries = unit(ring + 1.2 * hub)
    plain = NearestPrompts(vectors, names).search(queries, 1)
    assert {matches[0][0] for matches in plain} == {"hub"}
    corrected = NearestPrompts(vectors, names, csls=12).search(queries, 13)
    assert [matches[0][0] for matches in corrected] == names[1:]
    cosines = unit(vectors) @ queries.T
    np.fill_diagonal(similar := unit(vectors) @ unit(vectors).T, np.nan)
    expected = cosines - np.nanmean(similar, axis=1)[:, None] / 2
    for query, matches in enumerate(corrected):
        rows = [names.index(name) for name, _ in matches]
        np.testing.assert_allclose([c for _, c in matches], cosines[rows, query], atol=1e-6)
        np.testing.assert_allclose(expected[rows, query], -np.sort(-expected[:, query]), atol=1e-6)


def test_csls_of_one_prompt_and_of_copies() -> None:
    one = np.eye(3)[:1]
    assert NearestPrompts(one, ["a"], csls=5).search(one, 2) == [[("a", pytest.approx(1))]]
    copies = np.repeat(np.eye(3), 6, axis=0)
    names = [str(number) for number in range(18)]
    matches = NearestPrompts(copies, names, csls=3).search(np.eye(3)[1:2], 6)[0]
    assert {int(name) for name, _ in matches} == set(range(6, 12))
    np.testing.assert_allclose([cosine for _, cosine in matches], 1, atol=1e-6)
