"""Run the de-duplication benchmark on a tiny size; the published figures are measured by hand."""

from dataclasses import replace

import dedupe
import numpy as np
import pytest
from dedupe import Options

from img2prompt.data.similar.dedupe import keep_first

WORDS = ["red", "blue", "old", "tiny", "fox", "castle", "robot", "sea", "photo", "oil painting"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("texts")
    lines = [f"a {a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS[:3]]
    (folder / "real_prompts.txt").write_text("\n".join(lines[:200]))
    (folder / "flavors.txt").write_text("\n".join(lines[150:]))
    return Options(
        cache=folder / "cache",
        prompts=folder,
        rows=(100, 300),
        blends=(350,),
        neighbours=200,
        queries=90,
        threads=1,
        repeats=1,
    )


def test_both_methods_are_measured_and_printed(
    tiny: Options, capsys: pytest.CaptureFixture
) -> None:
    ratios = dedupe.run(tiny)
    printed = capsys.readouterr().out
    assert list(ratios) == [100, 300]
    assert "300 of 300" in printed
    assert "350" in printed
    assert len(np.load(tiny.cache / "texts-300.npy")) == len(dedupe.texts(tiny)) == 300


def test_some_batches_decide_their_rows(tiny: Options) -> None:
    vectors = dedupe.encode(tiny)
    whole = dedupe.common_loop(vectors, tiny)
    part = dedupe.common_loop(vectors, replace(tiny, batches=2))
    assert part.kept.tolist() == whole.kept[:180].tolist()
    result = keep_first(vectors, tiny.threshold)
    assert np.flatnonzero(whole.kept).tolist() == result.kept.tolist()
    assert 10 < len(result.kept) < 290
    dedupe.check(vectors, result, part, tiny.threshold)


def test_a_loop_that_sees_too_few_neighbours_is_refused(tiny: Options) -> None:
    vectors = np.concatenate([dedupe.encode(tiny)[:1]] * 50 + [dedupe.encode(tiny)[1:]])
    loop = dedupe.common_loop(vectors, replace(tiny, neighbours=20))
    assert loop.cut >= 50
    with pytest.raises(AssertionError, match=r"rows differ.*neighbours of \d+ rows"):
        dedupe.check(vectors, keep_first(vectors, 0.85), loop, 0.85)


def test_compared_pairs_are_counted(tiny: Options) -> None:
    result = keep_first(dedupe.encode(tiny), 0.85)
    expected = sum((result.kept < row).sum() for row in range(len(result.keeper)))
    assert dedupe.compared(result) == expected
