"""Readable prompts for predicted vectors, each with the cosine of its text to the vector."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from img2prompt.artifact import fingerprint_of
from img2prompt.config.predict import ComposeConfig, EvaluateConfig, PredictConfig, Text
from img2prompt.data.vectors import matrix
from img2prompt.errors import UserError
from img2prompt.model.text import PromptEncoder
from img2prompt.predictors.compose import Composer
from img2prompt.predictors.neighbours import NearestPrompts
from img2prompt.predictors.phrases import distinct, read_phrases, split_clauses
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.storage import read_bytes

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("rank", pa.int32()),
        ("cosine", pa.float32()),
        ("prompt", pa.string()),
    ]
)
"""Rows of readable prompts: `kind` is one of `config.predict.Text`, `rank` counts from 1."""


@dataclass(frozen=True)
class KnownPrompts:
    """N prompts that predictions are compared with."""

    prompts: Sequence[str]
    vectors: np.ndarray
    """Their vectors (N, 384)."""


def read_prompts(path: str) -> list[str]:
    """Return the distinct lines of a text file, in alphabetical order."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompts {path!r} cannot be read ({error}); allowed: UTF-8 text, a prompt a line"
        ) from None
    prompts = sorted({line.strip() for line in text.splitlines()} - {""})
    if not prompts:
        raise UserError(f"prompts {path!r} contains no text; allowed: one prompt a line")
    return prompts


def training_prompts(prepared: PreparedData) -> KnownPrompts:
    """Return the distinct prompts of the training split."""
    splits = prepared.groups.read_tables("rows", ["prompt_id", "kept", "split"])
    training = splits.filter((pc.field("split") == "train") & pc.field("kept"))["prompt_id"]
    table = prepared.targets.read_tables("rows", ["prompt_id", "prompt", "target"])
    table = table.filter(pc.field("prompt_id").isin(training.to_pylist()))
    return KnownPrompts(table["prompt"].to_pylist(), matrix(table["target"]))


def phrases_fingerprint(config: PredictConfig | EvaluateConfig) -> dict[str, str]:
    """Return the digest of the phrases of composed prompts by its name, if files of them are used.

    Raises:
        UserError: a file cannot be read, or the files contain no phrase.
    """
    if "composed" not in config.texts or not config.compose.phrases:
        return {}
    return {"phrases": fingerprint_of(read_phrases(config.compose.phrases))}


class ReadablePrompts:
    """Finds readable prompts of some kinds for predicted vectors.

    Args:
        known: prompts that are searched, and that composed prompts begin with.
        kinds: `nearest`, `composed` or both.
        nearest: known prompts that are listed for each vector.
        compose: how prompts are composed.
        encoder: folder of the prompt encoder; empty: its installed package.
        csls: see `NearestPrompts`.

    Raises:
        UserError: the encoder or a file of phrases is missing.
    """

    def __init__(
        self,
        known: KnownPrompts,
        kinds: Sequence[Text],
        nearest: int,
        compose: ComposeConfig,
        encoder: str = "",
        csls: int = 0,
    ) -> None:
        self._index = NearestPrompts(known.vectors, known.prompts, csls)
        self._kinds, self._nearest = kinds, nearest
        self._composer = _make_composer(compose, known, encoder) if "composed" in kinds else None

    def find(self, ids: Sequence[str], vectors: np.ndarray) -> pa.Table:
        """Return a table of SCHEMA for pictures and their vectors (N, 384), in their order."""
        matches = self._index.search(vectors, self._nearest)
        rows: list[list[tuple]] = [[] for _ in ids]
        if "nearest" in self._kinds:
            for name, listed, own in zip(ids, matches, rows, strict=True):
                own += [
                    (name, "nearest", rank, cosine, prompt)
                    for rank, (prompt, cosine) in enumerate(listed, start=1)
                ]
        if self._composer:
            composed = self._composer.compose(vectors, [listed[0][0] for listed in matches])
            for name, text, own in zip(ids, composed, rows, strict=True):
                own.append((name, "composed", 1, text.cosine, text.prompt))
        named = [dict(zip(SCHEMA.names, row, strict=True)) for own in rows for row in own]
        return pa.Table.from_pylist(named, schema=SCHEMA)


def _make_composer(config: ComposeConfig, known: KnownPrompts, encoder: str) -> Composer:
    """Return a composer of the phrases of the config, or of the clauses of the known prompts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.phrases:
        phrases = read_phrases(config.phrases)
    else:
        phrases = distinct(clause for prompt in known.prompts for clause in split_clauses(prompt))
    return Composer(PromptEncoder(encoder, device), phrases, config.candidates, device)
