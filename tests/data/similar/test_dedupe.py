import numpy as np
import pytest
import torch

from img2prompt.data.similar import bounds
from img2prompt.data.similar.dedupe import KeepFirst, keep_first
from img2prompt.data.vectors import exact_cosine

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


def quick_brute_force(vectors: np.ndarray, threshold: float) -> KeepFirst:
    """Brute force by float64 products, and one pair at a time where they tie."""
    wide = vectors.astype(np.float64)
    cosines = np.tril(wide @ wide.T, -1)
    assert np.abs(cosines - threshold).min() > 1e-12
    kept = np.zeros(len(wide), bool)
    keeper, score = np.arange(len(wide)), np.ones(len(wide))
    for row, cosine in enumerate(cosines):
        among = np.flatnonzero(kept & (cosine >= threshold))
        kept[row] = not len(among)
        if len(among):
            among = among[cosine[among] > cosine[among].max() - 1e-12]
            exact = [exact_cosine(vectors[[row]], vectors[[other]])[0] for other in among]
            keeper[row], score[row] = among[np.argmax(exact)], max(exact)
    return KeepFirst(np.flatnonzero(kept), keeper, score)


def assert_equal(found: KeepFirst, expected: KeepFirst) -> None:
    assert found.kept.tolist() == expected.kept.tolist()
    assert found.keeper.tolist() == expected.keeper.tolist()
    assert found.score.tolist() == expected.score.tolist()


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


@pytest.mark.parametrize("where", [0, 150])
def test_a_hub_of_6000_near_copies_is_one_prompt(where: int) -> None:
    rng = np.random.default_rng(0)
    hub = unit(rng.normal(size=(1, 384)))
    copies = unit(hub + 0.01 * rng.normal(size=(6000, 384)))
    others = np.linalg.qr(rng.normal(size=(384, 384)))[0].astype(np.float32)
    others = others[np.abs(others @ hub[0]) < 0.5][:300]
    found = keep_first(np.concatenate([others[:where], hub, copies, others[where:]]), 0.85)
    after = where + 6001
    assert found.kept.tolist() == [*range(where + 1), *range(after, after + len(others) - where)]
    assert (found.keeper[where:after] == where).all()
    assert found.score[where + 1 : after].tolist() == exact_cosine(hub, copies).tolist()


@pytest.mark.parametrize("block", BLOCKS)
def test_pairs_within_a_millionth_of_the_threshold(block: int) -> None:
    # Each row has its own plane with one fixed row, at an angle whose cosine is near the threshold.
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(384, 384)))[0]
    cosine = 0.85 + rng.uniform(-1e-6, 1e-6, size=383) * 10.0 ** rng.integers(-3, 1, size=383)
    rows = cosine[:, None] * axes[0] + np.sqrt(1 - cosine**2)[:, None] * axes[1:]
    kept = assert_same(np.concatenate([axes[:1], rows]).astype(np.float32), 0.85, block)
    assert 100 < len(kept) < 300


def adversary(kind: str) -> np.ndarray:
    """Vectors whose pairs are as near to the threshold, or as hard to tell apart, as can be."""
    rng = np.random.default_rng(2)
    if kind == "random":
        return unit(rng.normal(size=(2500, 384)))
    if kind == "low rank":
        return unit(rng.normal(size=(2500, 5)) @ rng.normal(size=(5, 384)))
    if kind == "unlike the sample":
        # The sample, every other row, sees only the first half of the dimensions.
        halves = rng.normal(size=(5000, 2, 24)) * 0.02
        halves[::2, 0] += rng.normal(size=(2500, 24))
        halves[1::2, 1] += rng.normal(size=(2500, 24)) + 2
        return unit(halves.reshape(5000, 48))
    cosine = float(kind.removeprefix("all near "))
    rest = np.sqrt(1 - cosine) * unit(rng.normal(size=(2500, 383)))
    return unit(np.concatenate([np.full((2500, 1), np.sqrt(cosine)), rest], axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize(
    "kind",
    [
        "random",
        "low rank",
        "unlike the sample",
        "all near 0.846",
        "all near 0.85",
        "all near 0.854",
    ],
)
def test_adversaries(kind: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "_has_int8", lambda: precision == "int8")
    vectors = adversary(kind)
    assert_equal(keep_first(vectors, 0.85), quick_brute_force(vectors, 0.85))


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


def test_small_edits_of_a_prompt_are_dropped() -> None:
    text = pytest.importorskip("img2prompt.model.text")
    prompts = [
        "a portrait of an old fisherman, oil on canvas, by rembrandt, highly detailed",
        "a red fox in the snow, winter forest, golden hour, 35 mm photograph",
        "a portrait of an old fisherman, oil on canvas, by rembrandt, highly detailed",
        "A Portrait of an OLD Fisherman, oil on canvas, by Rembrandt, highly detailed",
        "a portrait of an old  fisherman , oil on canvas, by rembrandt, highly detailed ",
        "a portrait of an old fisherman, oil on canvas, by rembrandt, very detailed",
        "a red fox in the snow, winter forest, golden hour, 50 mm photograph",
        "isometric render of a tiny coffee shop, blender, pastel colors",
    ]
    found = keep_first(text.PromptEncoder().encode(prompts), 0.85)
    assert found.kept.tolist() == [0, 1, 7]
    assert found.keeper.tolist() == [0, 1, 0, 0, 0, 0, 1, 7]
    assert (found.score[2:4] > 1 - 1e-6).all()
    assert 0.85 < found.score[5] < 1 - 1e-6


@pytest.fixture(scope="module")
def real_vectors(shared_data) -> np.ndarray:
    """1,500 prompts and 3,000 flavours; from where many flavours resemble each other."""
    text = pytest.importorskip("img2prompt.model.text")
    prompts = (shared_data / "prompts" / "real_prompts.txt").read_text().splitlines()[:1500]
    flavors = (shared_data / "prompts" / "flavors.txt").read_text().splitlines()[:3000]
    return text.PromptEncoder().encode(prompts + flavors)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.7, 0.85, 0.95])
def test_real_texts_equal_brute_force(real_vectors: np.ndarray, threshold: float) -> None:
    found = keep_first(real_vectors, threshold)
    assert_equal(found, quick_brute_force(real_vectors, threshold))
    assert 1000 < len(found.kept) < 4400


@pytest.mark.slow
def test_blocks_threads_tiles_and_the_file_do_not_matter(
    real_vectors: np.ndarray, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = keep_first(real_vectors, 0.85)
    np.save(tmp_path / "vectors.npy", real_vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    threads = torch.get_num_threads()
    try:
        for number, block, tile in ((1, 500, 256), (2, 3000, 700), (3, 65536, 64)):
            torch.set_num_threads(number)
            monkeypatch.setattr(bounds, "TILE", tile)
            monkeypatch.setattr(bounds, "PAIRS_AT_ONCE", 100 * number)
            assert_equal(keep_first(mapped, 0.85, block), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(rows=20_000, clusters=3000, spread=0.6, seed=4, size=384)
    found = keep_first(vectors, 0.85)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_equal(found, keep_first(vectors, 0.85))
