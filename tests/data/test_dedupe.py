import numpy as np
import pytest

from img2prompt.data.dedupe import keep_first

BLOCKS = [1, 7, 1000]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def clustered(rows: int, clusters: int, spread: float, seed: int, size: int = 24) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(clusters, size)))[rng.integers(clusters, size=rows)]
    return unit(centres + spread * rng.normal(size=(rows, size)) / np.sqrt(size))


def brute_force(vectors: np.ndarray, threshold: float) -> tuple[list, list, list]:
    """One pair at a time, in float64, straight from the definition."""
    wide = vectors.astype(np.float64)
    kept, keeper, score = [], [], []
    for number, row in enumerate(wide):
        best, best_score = number, -np.inf
        for other in kept:
            cosine = float(np.sum(wide[other] * row))
            if cosine >= threshold and cosine > best_score:
                best, best_score = other, cosine
        if best == number:
            kept.append(number)
        keeper.append(best)
        score.append(1.0 if best == number else best_score)
    return kept, keeper, score


def assert_same(vectors: np.ndarray, threshold: float, block: int) -> list[int]:
    found = keep_first(vectors, threshold, block)
    kept, keeper, score = brute_force(vectors, threshold)
    assert found.kept.tolist() == kept
    assert found.keeper.tolist() == keeper
    assert found.score.tolist() == score
    assert found.kept.dtype == found.keeper.dtype == np.int64
    return kept


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("spread", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("threshold", [0.5, 0.85])
def test_equals_brute_force(block: int, spread: float, threshold: float) -> None:
    vectors = clustered(rows=300, clusters=40, spread=spread, seed=int(spread * 10))
    kept = assert_same(vectors, threshold, block)
    assert 20 < len(kept) <= 300


@pytest.mark.parametrize("block", BLOCKS)
def test_a_dropped_row_drops_nobody(block: int) -> None:
    # a ~ b ~ c at 25 degrees each (cosine 0.906), a and c at 50 (0.643).
    found = keep_first(at_angles(0, 25, 50), 0.85, block)
    assert found.kept.tolist() == [0, 2]
    # b lies at 25 degrees from a and at 20 from c, but c comes later.
    assert keep_first(at_angles(0, 25, 45), 0.85, block).keeper.tolist() == [0, 0, 2]
    # The last row goes to the nearer of the two kept ones.
    assert keep_first(at_angles(0, 45, 24), 0.85, block).keeper.tolist() == [0, 1, 1]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_tie_at_the_threshold_is_a_duplicate(block: int) -> None:
    half = np.array([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]], np.float32)
    assert keep_first(half, 0.5, block).kept.tolist() == [0]
    assert keep_first(half, np.nextafter(0.5, 1), block).kept.tolist() == [0, 1]


@pytest.mark.parametrize("block", BLOCKS)
def test_equal_scores_go_to_the_first(block: int) -> None:
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0.70710678, 0.70710678, 0]], np.float32)
    found = keep_first(vectors, 0.7, block)
    assert found.keeper.tolist() == [0, 1, 0]
    assert_same(vectors, 0.7, block)


@pytest.mark.parametrize("block", BLOCKS)
def test_float64_decides_at_every_observed_score(block: int) -> None:
    # Each score is in turn the threshold, so a float32 judge errs on about half of them.
    vectors = clustered(rows=40, clusters=4, spread=0.5, seed=3, size=384)
    wide = vectors.astype(np.float64)
    scores = [float(np.sum(wide[a] * wide[b])) for a in range(40) for b in range(a)]
    for score in sorted(scores)[-60::6]:
        assert_same(vectors, score, block)
        assert_same(vectors, float(np.nextafter(score, 2)), block)


def test_a_hub_of_6000_near_copies_is_one_prompt() -> None:
    rng = np.random.default_rng(0)
    hub = unit(rng.normal(size=(1, 32)))
    copies = unit(hub + 0.02 * rng.normal(size=(6000, 32)))
    others = np.linalg.qr(rng.normal(size=(32, 32)))[0].astype(np.float32)
    others = others[np.abs(others @ hub[0]) < 0.5]
    found = keep_first(np.concatenate([hub, copies, others]), 0.85, block=1000)
    assert found.kept.tolist() == [0, *range(6001, 6001 + len(others))]
    assert (found.keeper[1:6001] == 0).all()
    expected = copies.astype(np.float64) @ hub[0].astype(np.float64)
    np.testing.assert_allclose(found.score[1:6001], expected, atol=1e-12)


def test_identical_vectors_in_blocks_and_across_them() -> None:
    vectors = np.repeat(at_angles(0, 90), 50, axis=0)
    found = keep_first(vectors, 1.0, block=7)
    assert found.kept.tolist() == brute_force(vectors, 1.0)[0]
    assert found.keeper.tolist() == [0] * 50 + [50] * 50


def test_no_rows() -> None:
    found = keep_first(np.empty((0, 384), np.float32), 0.85)
    assert [len(found.kept), len(found.keeper), len(found.score)] == [0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 1.01])
def test_a_bad_vector_is_named(bad: float) -> None:
    vectors = at_angles(0, 30, 60, 90)
    vectors[2] = [bad, 0]
    with pytest.raises(ValueError, match=r"vector 2 has length"):
        keep_first(vectors, 0.85)


def test_a_bad_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        keep_first(np.ones(3, np.float32), 0.85)


def test_real_prompts_keep_the_rule(shared_data) -> None:
    text = pytest.importorskip("img2prompt.model.text")
    lines = (shared_data / "prompts" / "real_prompts.txt").read_text().splitlines()[:400]
    vectors = text.PromptEncoder().encode(lines)
    found = keep_first(vectors, 0.85, block=300)
    kept, keeper, _ = brute_force(vectors, 0.85)
    assert found.kept.tolist() == kept
    assert found.keeper.tolist() == keeper
    assert 200 < len(kept) < 400
