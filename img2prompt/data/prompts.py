"""What a usable prompt is, and the id that equal prompts share."""

import hashlib
import re
import unicodedata

from img2prompt.config import CleanConfig

# Control characters (Unicode Cc) that are not white space; white space is collapsed instead.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


def normalise(text: str) -> str:
    """The same prompt in one form: NFC, no control characters, single spaces, no outer ones.

    Lone surrogates (bytes that were not UTF-8) become U+FFFD, so the result can be encoded.
    """
    text = _SURROGATE.sub(_UNDECODABLE, _CONTROL.sub("", text))
    return " ".join(unicodedata.normalize("NFC", text).split())


def reject_reason(prompt: str, config: CleanConfig) -> str | None:
    """Why a normalised prompt is unfit, as `kind: detail`; None when it is fit."""
    if not prompt:
        return "empty prompt: no visible character"
    if _UNDECODABLE in prompt:
        where = prompt.index(_UNDECODABLE) + 1
        return f"undecodable prompt: U+FFFD at character {where}; allowed: valid UTF-8"
    words = len(prompt.split())
    allowed = f"allowed: {config.min_words} to {config.max_words}"
    if words < config.min_words:
        return f"too few words: {words}; {allowed}"
    if words > config.max_words:
        return f"too many words: {words}; {allowed}"
    return None


def prompt_id(prompt: str) -> str:
    """16 hex digits shared by exactly the prompts that normalise to the same text."""
    return hashlib.sha256(normalise(prompt).encode()).hexdigest()[:16]
