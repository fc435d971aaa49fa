import random
import re
from pathlib import Path

import pytest

from img2prompt.data.text.blocked import BlockedWords
from img2prompt.data.text.normalise import normalise
from img2prompt.errors import UserError

LIST = BlockedWords("gun\n\n  Red  Haired \ngun fight\nлюди\nstraße\n100%\n".encode(), "list.txt")


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a Gun on a table", "'gun' at word 2"),
        ("the gunner began", None),
        ("a red-haired girl", "'Red Haired' at word 2"),
        ("RED, HAIRED", "'Red Haired' at word 1"),
        ("red and haired", None),
        ("haired red", None),
        ("a gun fight", "'gun' at word 2"),
        ("ЛЮДИ", "'люди' at word 1"),
        ("eine STRASSE", "'straße' at word 2"),
        ("100 % wool", "'100%' at word 1"),
        ("gun_metal", None),
        ("(gun:1.2)", "'gun' at word 1"),
        ("", None),
        ("red", None),
    ],
)
def test_whole_words_of_any_case(prompt: str, found: str | None) -> None:
    assert LIST.reason(prompt) == (found and f"blocked word: {found}")


def test_thousands_of_phrases_agree_with_one_regular_expression(shared_data: Path) -> None:
    folder = shared_data / "prompts"
    prompts = [normalise(p) for p in (folder / "real_prompts.txt").read_text().splitlines()[:1500]]
    phrases = [
        phrase
        for phrase in (folder / "flavors.txt").read_text().splitlines()
        if re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*", phrase)
    ]
    phrases = random.Random(0).sample(phrases, 3000)
    words = BlockedWords("\n".join(phrases).encode(), "flavors.txt")
    between = r"[^\w]+"
    alternatives = "|".join(phrase.replace(" ", between) for phrase in phrases)
    pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)
    expected = [bool(pattern.search(prompt.casefold())) for prompt in prompts]
    assert [words.reason(prompt) is not None for prompt in prompts] == expected
    assert 100 < sum(expected) < 1400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"list.txt contains no word"),
        (b"\n \n", r"list.txt contains no word"),
        (b"gun\n!?\n", r"list.txt line 2 is '!\?'; allowed: letters or digits"),
        (b"caf\xe9", r"list.txt is not UTF-8"),
    ],
)
def test_bad_lists(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        BlockedWords(content, "list.txt")


def test_a_byte_order_mark_is_no_part_of_the_first_word() -> None:
    assert BlockedWords(b"\xef\xbb\xbfgun\r\n", "list.txt").reason("gun")
