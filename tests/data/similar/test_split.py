import json

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from img2prompt.data.similar.split import assign, components, leak_report
from img2prompt.errors import UserError

BLOCKS = [1, 7, 1000]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(rows: int, clusters: int, spread: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(clusters, 24)))[rng.integers(clusters, size=rows)]
    return unit(centres + spread * rng.normal(size=(rows, 24)) / np.sqrt(24))


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def exact(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.astype(np.float64) @ right.astype(np.float64).T


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.8])
def test_components_equal_the_dense_graph(block: int, threshold: float) -> None:
    vectors = clustered(rows=250, clusters=30, spread=0.6, seed=1)
    labels = components(vectors, threshold, block)
    count, expected = connected_components(exact(vectors, vectors) >= threshold, directed=False)
    assert labels.tolist() == expected.tolist()
    assert labels.dtype == np.int64
    assert 1 < count < 250 or threshold == 0.4


@pytest.mark.parametrize("block", BLOCKS)
def test_components_follow_chains_in_any_order(block: int) -> None:
    angles = np.arange(0, 90, 3)
    shuffled = np.random.default_rng(0).permutation(angles)
    assert components(at_angles(*shuffled), np.cos(np.radians(4)), block).tolist() == [0] * 30
    assert components(at_angles(*angles), np.cos(np.radians(2)), block).tolist() == [*range(30)]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_tie_at_the_threshold_joins(block: int) -> None:
    vectors = np.array([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]], np.float32)
    assert components(vectors, 0.5, block).tolist() == [0, 0]
    assert components(vectors, float(np.nextafter(0.5, 1)), block).tolist() == [0, 1]


def test_components_name_a_bad_vector() -> None:
    vectors = at_angles(0, 10, 20)
    vectors[1] = np.nan
    with pytest.raises(ValueError, match="vector 1 has length"):
        components(vectors, 0.8)


def shares(split: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    return {name: weights[split == name].sum() / weights.sum() for name in ("train", "val", "test")}


def test_assign_hits_the_fractions_with_whole_components() -> None:
    rng = np.random.default_rng(0)
    labels = np.unique(rng.zipf(1.5, size=5000).clip(max=800), return_inverse=True)[1]
    weights = rng.integers(1, 5, size=5000)
    split = assign(labels, weights, 0.1, 0.05, seed=0)
    assert shares(split, weights) == pytest.approx(
        {"train": 0.85, "val": 0.1, "test": 0.05}, abs=1e-3
    )
    for label in range(labels.max() + 1):
        assert len(set(split[labels == label])) == 1
    assert split[labels == np.bincount(labels, weights).argmax()][0] == "train"


def test_large_components_train_while_small_ones_suffice() -> None:
    labels = np.concatenate([np.repeat([0, 1, 2], 20), np.arange(3, 203)])
    split = assign(labels, np.ones(260), 0.1, 0.1, seed=4)
    assert set(split[:60]) == {"train"}
    assert [(split == name).sum() for name in ("train", "val", "test")] == [208, 26, 26]


def test_assign_draws_by_seed() -> None:
    labels, weights = np.arange(200), np.ones(200)
    first, again, other = (assign(labels, weights, 0.1, 0.1, seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    # A random draw, not the first or last rows.
    assert 60 < np.flatnonzero(first == "val").mean() < 140


def test_assign_does_not_depend_on_the_order_of_rows() -> None:
    labels, weights = np.arange(100) // 3, np.arange(100) % 4 + 1
    split = assign(labels, weights, 0.2, 0.2, seed=0)
    order = np.random.default_rng(0).permutation(100)
    assert assign(labels[order], weights[order], 0.2, 0.2, 0).tolist() == split[order].tolist()


@pytest.mark.parametrize("sizes", [[1, 1, 1], [5, 1, 1], [9, 8, 7], [1, 1, 1, 90], [2, 2, 50, 2]])
@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.45, 0.4), (0.8, 0.05), (0.01, 0.02)])
def test_no_split_is_empty_and_the_heaviest_trains(sizes: list, fractions: tuple) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for seed in range(5):
        split = assign(labels, np.ones(len(labels)), *fractions, seed)
        assert set(split) == {"train", "val", "test"}
        assert split[labels == np.argmax(sizes)][0] == "train"


def test_no_other_choice_of_one_more_component_is_nearer() -> None:
    rng = np.random.default_rng(5)
    for seed in range(20):
        sizes = rng.integers(1, 30, size=40)
        split = assign(np.arange(40), sizes, 0.15, 0.1, seed)
        lightest = sizes[split == "train"].min()
        for name, fraction in (("val", 0.15), ("test", 0.1)):
            miss = abs(sizes[split == name].sum() - fraction * sizes.sum())
            assert miss <= lightest / 2


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 1, 1]])
def test_too_few_components_say_what_to_change(labels: list) -> None:
    with pytest.raises(UserError, match=r"split_cosine"):
        assign(np.array(labels), np.ones(len(labels)), 0.1, 0.1, seed=0)


@pytest.mark.parametrize("block", BLOCKS)
def test_leak_report_equals_brute_force(block: int) -> None:
    train = clustered(rows=120, clusters=20, spread=0.7, seed=2)
    held_out = clustered(rows=50, clusters=20, spread=0.7, seed=3)
    names = [f"t{i}" for i in range(120)], [f"h{i}" for i in range(50)]
    report = leak_report(train, held_out, *names, block=block)
    cosine = exact(held_out, train)
    assert report["largest_cosine"] == pytest.approx(cosine.max(), abs=1e-12)
    order = np.argsort(-cosine.max(axis=1))[:10]
    assert [pair["held_out"] for pair in report["worst_pairs"]] == [f"h{i}" for i in order]
    assert [pair["train"] for pair in report["worst_pairs"]] == [
        f"t{cosine[i].argmax()}" for i in order
    ]
    counts = report["histogram"]["counts"]
    edges = report["histogram"]["edges"]
    best = cosine.max(axis=1)
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        assert count == ((best >= low) & (best < high)).sum()
    assert (edges[0], edges[20], edges[39], sum(counts)) == (-1, 0, 0.95, 50)
    json.dumps(report)


def test_leak_report_counts_a_copy_in_the_last_bin() -> None:
    rows = at_angles(0, 90)
    report = leak_report(rows, rows[:1], ["a", "b"], ["c"])
    assert report["histogram"]["counts"][-1] == 1
    assert report["worst_pairs"] == [{"cosine": 1.0, "held_out": "c", "train": "a"}]


def test_a_grouped_split_leaks_less_than_its_threshold() -> None:
    vectors = clustered(rows=400, clusters=80, spread=0.6, seed=9)
    split = assign(components(vectors, 0.8), np.ones(400), 0.1, 0.1, seed=0)
    for name in ("val", "test"):
        report = leak_report(
            vectors[split == "train"], vectors[split == name], [""] * 400, [""] * 400
        )
        assert report["largest_cosine"] < 0.8
    random = np.random.default_rng(0).permutation(split)
    leaky = exact(vectors[random == "val"], vectors[random == "train"])
    assert leaky.max() >= 0.8
