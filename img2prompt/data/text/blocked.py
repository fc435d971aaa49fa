"""Words and phrases that no prompt may contain."""

import re

from img2prompt.data.text.normalise import normalise
from img2prompt.errors import UserError

_WORD = re.compile(r"\w+")


class BlockedWords:
    """A list of words and phrases, matched as whole words in any case.

    A word is a run of letters, digits and underscores; characters between words are ignored, so
    `red haired` matches `red-haired`. Scripts without spaces match by whole runs only. A prompt
    takes one look-up for each of its words and each length of phrase, however long the list is.
    """

    def __init__(self, content: bytes, where: str) -> None:
        """Read a list: UTF-8, one word or phrase a line; empty lines are skipped.

        Raises:
            UserError: the list is empty or not UTF-8, or a line has no letter or digit.
        """
        self._phrases: dict[tuple[str, ...], str] = {}
        for number, line in enumerate(_lines(content, where), 1):
            phrase = normalise(line)
            if phrase and not (words := _words(phrase)):
                raise UserError(f"{where} line {number} is {phrase!r}; allowed: letters or digits")
            if phrase:
                self._phrases.setdefault(words, phrase)
        if not self._phrases:
            raise UserError(f"{where} contains no word: give one word or phrase a line")
        self._lengths = sorted({len(words) for words in self._phrases})

    def reason(self, prompt: str) -> str | None:
        """Return `kind: detail` with the first blocked phrase of a prompt, or None."""
        words = _words(prompt)
        for start in range(len(words)):
            for length in self._lengths:
                if phrase := self._phrases.get(words[start : start + length]):
                    return f"blocked word: {phrase!r} at word {start + 1}"
        return None


def _lines(content: bytes, where: str) -> list[str]:
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8: {error}") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(normalise(text.casefold())))
