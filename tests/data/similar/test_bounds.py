import pickle

import numpy as np
import pytest
import torch

from img2prompt.data.similar import bounds as module
from img2prompt.data.similar.bounds import PAIRS_AT_ONCE, near_pairs
from img2prompt.data.similar.matches import BestMatches, best_matches, nearest

EVERY = 10


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(rows: int, size: int, seed: int, spread: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(rows // EVERY, size)))[rng.integers(rows // EVERY, size=rows)]
    return unit(centres + spread * rng.normal(size=(rows, size)) / np.sqrt(size))


def exact(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.astype(np.float64) @ right.astype(np.float64).T


@pytest.fixture(params=["int8", "fp32"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "_has_int8", lambda: request.param == "int8")
    return request.param


@pytest.mark.parametrize("coordinates", [1, 2, 16, 112, 1000])
@pytest.mark.parametrize("size", [2, 24, 384])
def test_products_of_short_rows_bound_every_cosine(coordinates: int, size: int) -> None:
    vectors = clustered(rows=600, size=size, seed=size)
    pairs = near_pairs(vectors, coordinates)
    assert pairs.short.shape == (600, min(coordinates, size + 1))
    assert np.abs(pairs.short).max() == 127
    bounds = exact(pairs.short, pairs.short) / pairs.scale**2 + pairs.slack
    cosines = exact(vectors, vectors)
    assert (bounds >= cosines).all()
    if coordinates > size:
        assert (bounds - cosines).max() <= 2 * pairs.slack
    assert pairs.slack < 0.04


def test_products_are_exact(precision: str) -> None:
    rng = np.random.default_rng(0)
    short = rng.choice(np.array([-127, 126, 127], np.int8), size=(500, 1000))
    work = module._Work(np.zeros((500, 1), np.float32), short)
    rows = work.short
    for left, right in ((rows, rows), (rows[:3], rows), (rows[7:8], rows[:1])):
        expected = left.long() @ right.long().T
        assert torch.equal(work.product(left, right).long(), expected)


@pytest.mark.parametrize("floor", [-0.5, 0.0, 0.002, 0.5, 0.85])
def test_candidates_hold_every_pair_at_or_above_the_floor(precision: str, floor: float) -> None:
    vectors = clustered(rows=700, size=48, seed=1)
    rows, others = np.arange(5, 650), np.arange(0, 700, 2)
    passed = np.zeros((700, 700), bool)
    for row, other in near_pairs(vectors, 24).candidates(rows, others, np.full(700, floor)):
        assert len(row) <= PAIRS_AT_ONCE
        assert not passed[row, other].any()
        passed[row, other] = True
    wanted = np.zeros_like(passed)
    wanted[np.ix_(rows, others)] = True
    assert not (passed & ~wanted).any()
    cosines = exact(vectors, vectors)
    assert not (wanted & ~passed & (cosines >= floor)).any()
    if floor == 0.85:
        assert passed.sum() < wanted.sum() / 20


def test_each_row_has_its_own_floor_and_pairs_come_in_order() -> None:
    vectors = clustered(rows=300, size=24, seed=2)
    floor = np.linspace(0.3, 1.0, 300)
    found = [*near_pairs(vectors).candidates(np.arange(300), np.arange(300), floor)]
    row, other = (np.concatenate(ends) for ends in zip(*found, strict=True))
    assert (np.diff(row * 300 + other) > 0).all()
    cosines = exact(vectors, vectors)
    assert len(row) >= (cosines >= floor[:, None]).sum()
    assert (cosines[row, other] >= floor[row] - 0.03).all()


def test_at_least_is_decided_in_float64() -> None:
    vectors = clustered(rows=80, size=384, seed=3)
    pairs = near_pairs(vectors)
    row, other = (ends.ravel() for ends in np.indices((80, 80)))
    cosines = np.sum(vectors[row].astype(np.float64) * vectors[other], axis=1)
    for threshold in np.sort(cosines)[-400::57]:
        for floor in (threshold, np.nextafter(threshold, 2)):
            found = pairs.at_least(row, other, np.full(80, floor))
            reached = cosines >= floor
            assert found[0].tolist() == row[reached].tolist()
            assert found[1].tolist() == other[reached].tolist()
            assert found[2].tolist() == cosines[reached].tolist()


def test_a_copy_in_another_process_finds_the_same() -> None:
    vectors = clustered(rows=200, size=48, seed=4)
    pairs = near_pairs(vectors)
    job = np.arange(200), np.arange(200)
    found = best_matches(pairs, 0.5, job)
    copy = pickle.loads(pickle.dumps(pairs))
    assert [part.tolist() for part in best_matches(copy, 0.5, job)] == [
        part.tolist() for part in found
    ]


def test_best_takes_the_highest_and_the_first_of_equals_in_any_order() -> None:
    row, other = np.array([3, 3, 3, 1, 1]), np.array([9, 4, 7, 8, 2])
    cosine = np.array([0.7, 0.9, 0.9, 0.6, 0.6])
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        for parts in (1, 5):
            best = BestMatches(near_pairs(unit(np.ones((10, 2)))), 0.5)
            for some in np.array_split(order, parts):
                best.take(row[some], other[some], cosine[some])
            assert (best.other[3], best.score[3], best.floor[3]) == (4, 0.9, 0.9)
            assert (best.other[1], best.score[1]) == (2, 0.6)
            assert (best.other[0], best.floor[0]) == (-1, 0.5)


@pytest.mark.parametrize("block", [7, 100, 10_000])
@pytest.mark.parametrize("sizes", [(1, 1), (50, 1), (300, 700)])
def test_nearest_equals_brute_force(block: int, sizes: tuple[int, int]) -> None:
    vectors = clustered(rows=1000, size=48, seed=5)
    rows, others = vectors[: sizes[0]], vectors[-sizes[1] :]
    other, cosine = nearest(rows, others, block)
    expected = exact(rows, others)
    assert other.tolist() == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(cosine, expected.max(axis=1), atol=1e-12)


def test_nearest_of_opposites() -> None:
    rows = np.array([[1, 0], [0, 1]], np.float32)
    other, cosine = nearest(rows, -rows[:1], block=10)
    assert (other.tolist(), cosine.tolist()) == ([0, 0], [-1, 0])
