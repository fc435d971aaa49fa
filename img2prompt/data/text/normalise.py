"""Normal form, rules and ids of prompts."""

import hashlib
import re
import unicodedata
from functools import lru_cache

from img2prompt.config.prepare import CleanConfig

# Control characters (Unicode Cc) that are not white space; white space is collapsed instead.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
_NO_WORD = re.compile(r"[^\w\s]|_")
_BLANK = re.compile(r"\s")


def normalise(text: str) -> str:
    """Return the normal form of a prompt: NFC, no control characters, single spaces, none outside.

    Lone surrogates (bytes that were not UTF-8) become U+FFFD, so the result can be encoded.
    """
    text = _SURROGATE.sub(_UNDECODABLE, _CONTROL.sub("", text))
    return " ".join(unicodedata.normalize("NFC", text).split())


def reject_reason(prompt: str, config: CleanConfig) -> str | None:
    """Return why a normalised prompt is unfit, as `kind: detail`, or None.

    Every character must be allowed.
    """
    if not prompt:
        return "empty prompt: no visible character"
    if _UNDECODABLE in prompt:
        where = prompt.index(_UNDECODABLE) + 1
        return f"undecodable prompt: U+FFFD at character {where}; allowed: valid UTF-8"
    return (
        _words_reason(prompt, config)
        or _characters_reason(prompt, config.characters)
        or _symbols_reason(prompt, config.max_symbols)
    )


def _words_reason(prompt: str, config: CleanConfig) -> str | None:
    words = len(prompt.split())
    allowed = f"allowed: {config.min_words} to {config.max_words}"
    if words < config.min_words:
        return f"too few words: {words}; {allowed}"
    if words > config.max_words:
        return f"too many words: {words}; {allowed}"
    return None


def _characters_reason(prompt: str, characters: str) -> str | None:
    if characters == "any" or prompt.isascii():
        return None
    for position, character in enumerate(prompt, 1):
        if not (character.isascii() or (characters == "latin" and _is_latin(character))):
            name = unicodedata.name(character, f"U+{ord(character):04X}")
            return f"character: {name} at character {position}; allowed: {characters}"
    return None


@lru_cache(maxsize=4096)
def _is_latin(character: str) -> bool:
    """Return whether a character is a Latin letter, a mark for one, or no letter, mark or digit.

    Python has no data on scripts, but Unicode's names begin with them.
    """
    category = unicodedata.category(character)
    if category[0] == "M":  # the general marks, and the selectors of emoji
        return unicodedata.name(character, "").startswith(("COMBINING ", "VARIATION SELECTOR"))
    if category[0] == "L":
        return "LATIN " in unicodedata.name(character, "") or character in "ªº"
    return category != "Nd"


def _symbols_reason(prompt: str, limit: float) -> str | None:
    """Count symbols: characters that are not letters, marks, numbers or white space."""
    symbols = [c for c in _NO_WORD.findall(prompt) if c.isascii() or not _is_mark(c)]
    visible = len(prompt) - len(_BLANK.findall(prompt))
    if len(symbols) <= limit * visible:
        return None
    return (
        f"too many symbols: {len(symbols)} of {visible} characters; allowed: a share of {limit:g}"
    )


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def prompt_id(prompt: str) -> str:
    """Return 16 hex digits, the same for all prompts with the same normal form."""
    return hashlib.sha256(normalise(prompt).encode()).hexdigest()[:16]
