import hashlib
import unicodedata

import pytest

from img2prompt.config.prepare import CleanConfig
from img2prompt.data.text.normalise import normalise, prompt_id, reject_reason

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


LATIN_LETTERS = "aZéßøłñĳǅªº\u0251ḁﬁ\uff21"
OTHER_LETTERS = "яαא中あカ한कไอʰ"


@pytest.mark.parametrize(
    ("prompt", "characters", "name"),
    [
        ("a red cat, 8k (best:1.2)", "ascii", None),
        ("a red café", "ascii", "LATIN SMALL LETTER E WITH ACUTE at character 10"),
        ("a red cat \u2013 8k", "ascii", "EN DASH at character 11"),
        ("a red café \u2013 8k \u2014 ½ \u00d7 3 €", "latin", None),
        ("astronaut 🧑\u200d🚀 \u2764\ufe0f in space", "latin", None),
        ("q\u0323 Việt", "latin", None),
        ("a red cat and a собака", "latin", "CYRILLIC SMALL LETTER ES at character 17"),
        ("many words of latin and one 彩", "latin", "CJK UNIFIED IDEOGRAPH-5F69 at character 29"),
        ("a cat \u0e31 here", "latin", "THAI CHARACTER MAI HAN-AKAT at character 7"),
        ("room \u0663", "latin", "ARABIC-INDIC DIGIT THREE at character 6"),
        ("a red cat and a собака 彩", "any", None),
        ("\ue000 private", "ascii", "U+E000 at character 1"),
    ],
)
def test_every_character_is_checked(prompt: str, characters: str, name: str | None) -> None:
    reason = name and f"character: {name}; allowed: {characters}"
    assert reject_reason(prompt, CleanConfig(characters=characters)) == reason


def test_letters_of_latin_and_other_scripts_at_every_place() -> None:
    config = CleanConfig(characters="latin")
    for letter in LATIN_LETTERS:
        assert reject_reason(f"a red {letter} on grass", config) is None
    words = ["a", "red", "cat", "on", "green", "grass"]
    for letter in OTHER_LETTERS:
        for place in range(len(words)):
            prompt = " ".join([*words[:place], letter, *words[place + 1 :]])
            assert str(reject_reason(prompt, config)).startswith("character: ")


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        ("((cat))", "4 of 7"),
        ("(cat)", None),
        ("ab !!", None),
        ("a !!", "2 of 3"),
        ("__ a", "2 of 3"),
        ("🧑 🚀", "2 of 2"),
        ("\u0e01\u0e31\u0e48\u0e19", None),  # two of four characters are marks
        ("8 1 2", None),
        ("...", "3 of 3"),
    ],
)
def test_share_of_symbols(prompt: str, counts: str | None) -> None:
    reason = counts and f"too many symbols: {counts} characters; allowed: a share of 0.5"
    assert reject_reason(prompt, CleanConfig()) == reason
    assert reject_reason(prompt, CleanConfig(max_symbols=1)) is None


def test_prompt_id_is_shared_by_spellings_of_one_prompt() -> None:
    expected = hashlib.sha256("café at night".encode()).hexdigest()[:16]
    assert prompt_id("cafe\u0301  at\tnight ") == expected
    assert prompt_id("Café at night") != expected
    assert prompt_id("bad \udcff byte") == prompt_id("bad \ufffd byte")
