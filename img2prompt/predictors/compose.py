"""Composed prompts: known prompts, changed clause by clause until they are close to given vectors.

As in CLIP Interrogator (github.com/pharmapsychotic/clip-interrogator), a text grows by the phrase
that raises its similarity most, until none does. Here many texts grow at once; phrases are ranked
by an estimate from vectors that are known before, and only the best few texts are encoded; and
clauses of the start are removed where that helps.

Shapes: B rows of a block, M phrases of the vocabulary, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from img2prompt.data.vectors import unit_rows
from img2prompt.model.text import LONGEST, PromptEncoder
from img2prompt.predictors.phrases import Phrases, split_clauses

ROWS_AT_ONCE = 64
"""Rows of a block. Their estimates take about 20 bytes for each row and phrase."""
SMALLEST_GAIN = 1e-3
"""Cosine that a change must add: smaller gains make long texts."""


@dataclass(frozen=True)
class Composed:
    """A prompt and the cosine of its vector with the given one."""

    prompt: str
    cosine: float


@dataclass
class _Texts:
    """Texts of a block while they grow."""

    clauses: list[list[int]]
    """Numbers of phrases, for each row."""
    vectors: np.ndarray
    """Exact vectors (B, 384)."""
    cosines: np.ndarray
    """Cosines (B,) with the targets."""


class Composer:
    """Composes prompts from a vocabulary.

    Args:
        encoder: encoder of prompts.
        phrases: vocabulary, M >= 1.
        candidates: K, the texts that are encoded for each prompt in each round.
        device: where phrases are ranked.
    """

    def __init__(
        self, encoder: PromptEncoder, phrases: Sequence[str], candidates: int, device: str = "cpu"
    ) -> None:
        self._encoder = encoder
        self._phrases = Phrases.encode(phrases, encoder)
        self._candidates = candidates
        self._vectors = torch.from_numpy(self._phrases.vectors).to(device)
        added = [len(tokens) + 1 for tokens in self._phrases.tokens]
        self._added = torch.tensor(added, dtype=torch.float32, device=device)

    def compose(self, vectors: np.ndarray, starts: Sequence[str]) -> list[Composed]:
        """Return a prompt for each vector (N, 384), beginning with its start.

        A start that is longer than the encoder reads loses its last clauses; one without any text
        is replaced by the nearest phrase. The result for a vector does not depend on the other
        vectors, except for rounding.
        """
        targets = unit_rows(vectors, "vectors").astype(np.float32)
        pool, clauses = self._split(starts)
        composed = []
        for row in range(0, len(targets), ROWS_AT_ONCE):
            rows = slice(row, row + ROWS_AT_ONCE)
            composed += self._compose(pool, clauses[rows], targets[rows])
        return composed

    def _split(self, starts: Sequence[str]) -> tuple[Phrases, list[list[int]]]:
        """Return the phrases with the clauses of all starts, and each start as numbers of them."""
        texts = [split_clauses(start) for start in starts]
        distinct = list(dict.fromkeys(clause for clauses in texts for clause in clauses))
        pool = self._phrases + Phrases.encode(distinct, self._encoder)
        own = pool.texts[len(self._phrases.texts) :]
        numbers = {text: len(self._phrases.texts) + row for row, text in enumerate(own)}
        clauses = [[numbers[text] for text in row if text in numbers] for row in texts]
        for row in clauses:
            while pool.length(row) > LONGEST:
                row.pop()
        return pool, clauses

    def _compose(
        self, pool: Phrases, clauses: list[list[int]], targets: np.ndarray
    ) -> list[Composed]:
        similar = torch.from_numpy(targets).to(self._vectors.device) @ self._vectors.T
        nearest = similar.argmax(dim=1).tolist()
        clauses = [own or [phrase] for own, phrase in zip(clauses, nearest, strict=True)]
        vectors = self._encoder.encode_tokens(pool.join(clauses))
        texts = _Texts(clauses, vectors, np.einsum("bd,bd->b", vectors, targets))
        growing = np.arange(len(targets))
        while len(growing):
            options = self._options(pool, texts, targets, similar, growing)
            growing = self._take_best(pool, texts, targets, options)
        return [
            Composed(pool.text(row), float(cosine))
            for row, cosine in zip(texts.clauses, texts.cosines, strict=True)
        ]

    def _options(
        self,
        pool: Phrases,
        texts: _Texts,
        targets: np.ndarray,
        similar: Tensor,
        growing: np.ndarray,
    ) -> dict[int, list[list[int]]]:
        """Return the changed texts that are worth encoding, for each growing row."""
        best, estimates = self._additions(pool, texts, similar, growing)
        options = {}
        for row, phrases, values in zip(growing, best, estimates, strict=True):
            clauses = texts.clauses[row]
            changed = _removals(pool, clauses, texts.vectors[row], targets[row])
            changed += [
                (float(value), [*clauses, int(phrase)])
                for phrase, value in zip(phrases, values, strict=True)
                if _is_new(pool, clauses, int(phrase))
            ]
            changed.sort(key=lambda option: -option[0])
            options[int(row)] = [option for _, option in changed[: self._candidates]]
        return {row: changed for row, changed in options.items() if changed}

    def _additions(
        self, pool: Phrases, texts: _Texts, similar: Tensor, growing: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the phrases (B, K) whose addition promises most, and estimates of the cosines.

        A text's vector is nearly the mean of its tokens' vectors, so the vector of text and phrase
        is estimated as the mean of both, weighted by their tokens.
        """
        device = self._vectors.device
        lengths = [pool.length(texts.clauses[row]) for row in growing]
        weight = self._added / torch.tensor(lengths, device=device)[:, None]
        overlap = torch.from_numpy(texts.vectors[growing]).to(device) @ self._vectors.T
        cosines = torch.from_numpy(texts.cosines[growing]).to(device)[:, None]
        along = weight * similar[torch.from_numpy(growing).to(device)] + cosines
        estimates = along * (1 + weight * (2 * overlap + weight)).rsqrt()
        # Some of the best phrases are in the text already.
        values, phrases = estimates.topk(min(2 * self._candidates, len(self._added)))
        return phrases.cpu().numpy(), values.cpu().numpy()

    def _take_best(
        self,
        pool: Phrases,
        texts: _Texts,
        targets: np.ndarray,
        options: dict[int, list[list[int]]],
    ) -> np.ndarray:
        """Replace texts by their best option where it is a gain; return the rows that gained."""
        flat = [clauses for changed in options.values() for clauses in changed]
        rows = np.repeat(list(options), [len(changed) for changed in options.values()])
        if not len(flat):
            return np.empty(0, np.int64)
        vectors = self._encoder.encode_tokens(pool.join(flat))
        cosines = np.einsum("nd,nd->n", vectors, targets[rows])
        gained = []
        for row in options:
            own = np.flatnonzero(rows == row)
            best = own[np.argmax(cosines[own])]
            if cosines[best] > texts.cosines[row] + SMALLEST_GAIN:
                texts.clauses[row] = flat[best]
                texts.vectors[row], texts.cosines[row] = vectors[best], cosines[best]
                gained.append(row)
        return np.array(gained, np.int64)


def _removals(
    pool: Phrases, clauses: list[int], vector: np.ndarray, target: np.ndarray
) -> list[tuple[float, list[int]]]:
    """Return the text without each of its clauses, with estimates of the cosines."""
    if len(clauses) < 2:
        return []
    length, options = pool.length(clauses), []
    for position, number in enumerate(clauses):
        weight = (len(pool.tokens[number]) + 1) / length
        rest = vector - weight * pool.vectors[number]
        estimate = float(rest @ target) / max(float(np.linalg.norm(rest)), 1e-6)
        options.append((estimate, clauses[:position] + clauses[position + 1 :]))
    return options


def _is_new(pool: Phrases, clauses: list[int], phrase: int) -> bool:
    """Return True for a phrase that fits, and whose words the text does not contain in a row."""
    words = f" {pool.texts[phrase].casefold()} "
    repeats = any(words in f" {pool.texts[number].casefold()} " for number in clauses)
    return not repeats and pool.length([*clauses, phrase]) <= LONGEST
