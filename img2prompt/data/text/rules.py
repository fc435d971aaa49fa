"""All rules that the text of a prompt must follow."""

from collections.abc import Callable, Sequence

import numpy as np

from img2prompt.config.prepare import CleanConfig
from img2prompt.data.text.blocked import BlockedWords
from img2prompt.data.text.language import LanguageFilter
from img2prompt.data.text.normalise import reject_reason
from img2prompt.errors import UserError
from img2prompt.storage import read_bytes

CountUnknown = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""From prompts to the tokens of each that the encoder does not know, and all tokens, int (N,)."""


class PromptRules:
    """Judges normalised prompts by the rules of a config.

    Raises:
        UserError: the list of blocked words has no word, or a language is unknown.
    """

    def __init__(self, config: CleanConfig, blocked: bytes) -> None:
        """`blocked` is the content of the file of blocked words, as by `read_blocked`."""
        self._config = config
        words = BlockedWords(blocked, config.blocked_words) if config.blocked_words else None
        languages = LanguageFilter(config.languages) if config.languages else None
        self._filters = [rule for rule in (words, languages) if rule]

    def reason(self, prompt: str) -> str | None:
        """Return why a prompt is unfit, as `kind: detail`, or None, by all rules of its text."""
        reasons = (rule.reason(prompt) for rule in self._filters)
        return reject_reason(prompt, self._config) or next(filter(None, reasons), None)

    def reasons(self, prompts: Sequence[str], count_unknown: CountUnknown) -> list[str | None]:
        """Return why each of the prompts is unfit, or None, by all rules with `max_unknown`."""
        reasons = [self.reason(prompt) for prompt in prompts]
        limit = self._config.max_unknown
        rows = [row for row, reason in enumerate(reasons) if not reason] if limit < 1 else []
        counts = count_unknown([prompts[row] for row in rows])
        for row, unknown, tokens in zip(rows, *counts, strict=True):
            if unknown > limit * tokens:
                reasons[row] = (
                    f"unknown to the encoder: {unknown} of {tokens} tokens; allowed: a share of "
                    f"{limit:g}"
                )
        return reasons


def read_blocked(uri: str) -> bytes:
    """Read the file of blocked words; an empty URI gives no bytes.

    Raises:
        UserError: the file cannot be read.
    """
    if not uri:
        return b""
    try:
        return read_bytes(uri)
    except OSError as error:
        raise UserError(f"blocked_words: {uri} cannot be read: {error}") from None
