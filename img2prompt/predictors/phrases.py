"""Phrases that prompts are composed of, with their vectors and tokens.

A prompt is a list of clauses between commas. The tokeniser splits at punctuation, so the tokens of
a prompt are those of its clauses, joined by the token of the comma: each phrase is tokenised once,
and a prompt's length is known before it is encoded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from img2prompt.errors import UserError
from img2prompt.model.text import LONGEST, PromptEncoder, Tokens
from img2prompt.storage import read_bytes

SEPARATOR = ", "
_SPECIAL_TOKENS = 2
"""Tokens at the start and the end of a prompt."""


@dataclass(frozen=True)
class Phrases:
    """M phrases."""

    texts: Sequence[str]
    vectors: np.ndarray
    """float32 (M, 384), unit rows."""
    tokens: Sequence[np.ndarray]
    """Tokens of each phrase, int32, without the special ones."""
    ends: np.ndarray
    """int32 (3,): the tokens before a prompt, between two clauses, and after a prompt."""

    @classmethod
    def encode(cls, texts: Sequence[str], encoder: PromptEncoder) -> "Phrases":
        """Encode phrases, of which those that the encoder cannot read whole are left out."""
        tokens, ends = encoder.tokenise(texts), encoder.tokenise([","]).ids
        assert len(ends) == 1 + _SPECIAL_TOKENS, "a comma is one token"
        parts = np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1]) if texts else []
        whole = np.flatnonzero(~tokens.cut).tolist()
        return cls(
            [texts[row] for row in whole],
            encoder.encode_tokens(tokens)[whole],
            [parts[row][1:-1] for row in whole],
            ends,
        )

    def __add__(self, other: "Phrases") -> "Phrases":
        vectors = np.concatenate([self.vectors, other.vectors])
        texts, tokens = [*self.texts, *other.texts], [*self.tokens, *other.tokens]
        return Phrases(texts, vectors, tokens, self.ends)

    def text(self, clauses: Sequence[int]) -> str:
        """Return the prompt of some phrases, by their numbers."""
        return SEPARATOR.join(self.texts[number] for number in clauses)

    def length(self, clauses: Sequence[int]) -> int:
        """Return the number of tokens of a prompt."""
        return sum(len(self.tokens[number]) + 1 for number in clauses) - 1 + _SPECIAL_TOKENS

    def join(self, prompts: Iterable[Sequence[int]]) -> Tokens:
        """Return the tokens of prompts, each of one clause or more and at most LONGEST tokens."""
        start, comma, end = np.split(self.ends, 3)
        parts, lengths = [], []
        for clauses in prompts:
            parts.append(start)
            for number in clauses:
                parts += [self.tokens[number], comma]
            parts[-1] = end
            lengths.append(self.length(clauses))
        assert max(lengths) <= LONGEST
        cut = np.zeros(len(lengths), bool)
        return Tokens(np.concatenate(parts), np.array(lengths, np.int64), cut)


def distinct(texts: Iterable[str]) -> list[str]:
    """Return the texts without empty ones and repetitions in any case, in order."""
    first = dict[str, str]()
    for text in texts:
        first.setdefault(text.casefold(), text)
    first.pop("", None)
    return list(first.values())


def split_clauses(prompt: str) -> list[str]:
    """Return the distinct clauses of a prompt, in order."""
    return distinct(" ".join(clause.split()) for clause in prompt.split(","))


def read_phrases(paths: Sequence[str]) -> list[str]:
    """Return the distinct phrases of text files, one phrase a line, in the order of the files.

    Raises:
        UserError: a file cannot be read, or the files contain no phrase.
    """
    lines = list[str]()
    for path in paths:
        try:
            lines += read_bytes(path).decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"phrases {path!r} cannot be read ({error}); allowed: UTF-8 text, a phrase a line"
            ) from None
    phrases = distinct(" ".join(line.split()) for line in lines)
    if not phrases:
        raise UserError(f"phrases {list(paths)} contain no text; allowed: a phrase a line")
    return phrases
