"""All rules that the text of a prompt must follow."""

from img2prompt.config.prepare import CleanConfig
from img2prompt.data.text.blocked import BlockedWords
from img2prompt.data.text.language import LanguageFilter
from img2prompt.data.text.normalise import reject_reason
from img2prompt.errors import UserError
from img2prompt.storage import read_bytes


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
        """Return why a prompt is unfit, as `kind: detail`, or None."""
        reasons = (rule.reason(prompt) for rule in self._filters)
        return reject_reason(prompt, self._config) or next(filter(None, reasons), None)


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
