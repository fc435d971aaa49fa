import hashlib
import unicodedata

import pytest

from img2prompt.config import CleanConfig
from img2prompt.data.prompts import normalise, prompt_id, reject_reason

EVERY_CHARACTER = [chr(code) for code in range(0x110000)]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  a  red\tcar\r\nat night ", "a red car at night"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00b\x07c", "abc"),
        ("e\x00\u0301", "\u00e9"),
        ("a\u00a0b\u2003c\x85d\x1ce", "a b c d e"),
        ("half \udcff byte", "half \ufffd byte"),
        ("(Cat:1.2) <lora:x>, 8K", "(Cat:1.2) <lora:x>, 8K"),
        ("\x00 \x1f\n", ""),
    ],
)
def test_normalise(raw: str, expected: str) -> None:
    assert normalise(raw) == expected


def test_no_control_character_survives_and_nothing_else_is_lost() -> None:
    for character in EVERY_CHARACTER:
        result = normalise(f"a{character}b")
        category = unicodedata.category(character)
        if character.isspace():
            assert result == "a b"
        elif category == "Cc":
            assert result == "ab"
        elif category != "Cs":
            assert result == unicodedata.normalize("NFC", f"a{character}b")
        assert not any(unicodedata.category(c) == "Cc" for c in result)


def test_normalise_is_idempotent_on_real_prompts(shared_data) -> None:
    prompts = (shared_data / "prompts" / "real_prompts.txt").read_text().splitlines()[:2000]
    once = [normalise(prompt) for prompt in prompts]
    assert [normalise(prompt) for prompt in once] == once
    assert sum(map(bool, once)) > 1900


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "empty prompt: no visible character"),
        (
            "a \ufffd cat on grass",
            "undecodable prompt: U+FFFD at character 3; allowed: valid UTF-8",
        ),
        ("one two", "too few words: 2; allowed: 3 to 5"),
        ("a b c d e f", "too many words: 6; allowed: 3 to 5"),
        ("a b c", None),
        ("a b c d e", None),
    ],
)
def test_reject_reason(prompt: str, reason: str | None) -> None:
    assert reject_reason(prompt, CleanConfig(min_words=3, max_words=5)) == reason


def test_prompt_id_is_shared_by_spellings_of_one_prompt() -> None:
    expected = hashlib.sha256("café at night".encode()).hexdigest()[:16]
    assert prompt_id("cafe\u0301  at\tnight ") == expected
    assert prompt_id("Café at night") != expected
    assert prompt_id("bad \udcff byte") == prompt_id("bad \ufffd byte")
