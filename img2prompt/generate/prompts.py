"""A list of prompts -> the prompts that get pictures, before a second of GPU time is spent.

The rules of `clean` reject unfit prompts. Of equal prompts, and of near duplicates, the first one
in the list is kept (greedy keep-first, `data/similar/dedupe.py`).
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from img2prompt.config.generate import GenerateConfig
from img2prompt.config.sources import PictureSource
from img2prompt.data.similar.dedupe import keep_first
from img2prompt.data.sources import csv_table, files, json_lines
from img2prompt.data.sources.containers import DAMAGES, Parquet
from img2prompt.data.sources.portions import in_portions
from img2prompt.data.sources.rows import PROMPT_COLUMNS, Rejected, prompt_reason
from img2prompt.data.sources.table_files import opened_text
from img2prompt.data.text.normalise import normalise, prompt_id
from img2prompt.data.text.rules import PromptRules, read_blocked
from img2prompt.data.vectors import DIMENSIONS
from img2prompt.distributed.tasks import map_in_order
from img2prompt.errors import UserError
from img2prompt.model.text import PromptEncoder, count_unknown
from img2prompt.prepare.group import on_cluster

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([("prompt_id", pa.string()), ("prompt", pa.string())])
TEXT_ENDS = (".txt", ".txt.gz")
ENCODED_AT_ONCE = 20_000
"""Prompts of one task, which loads the encoder for them."""
_ROWS_AT_ONCE = 8192

PromptRow = tuple[str, Any] | Rejected
"""The position of a prompt in its file and its text as it is there, or a rejected row."""


def check_prompts(uri: str) -> None:
    """Check that a file of prompts exists and is of a known kind.

    Raises:
        UserError: it does not, or is not.
    """
    if not uri:
        raise UserError("prompts is empty: give a file of prompts with --prompts FILE")
    _reader(uri)
    try:
        files.SteadyFile(uri).close()
    except OSError as error:
        raise UserError(f"prompts: {uri} cannot be read ({error}): give --prompts a file") from None


def choose_prompts(config: GenerateConfig) -> tuple[pa.Table, list[Rejected]]:
    """Return the prompts that get pictures, a table of SCHEMA in the order of the list.

    Every other row of the list is a rejected row.

    Raises:
        UserError: the list cannot be read, or no prompt of it is fit.
    """
    rejected: list[Rejected] = []
    where, prompts = _fit_prompts(config, rejected)
    if not prompts:
        reasons = "".join(f"\n  {row.id}: {row.reason}" for row in rejected[:3])
        raise UserError(f"prompts: {config.prompts} has no prompt that is fit{reasons}")
    kept = np.arange(len(prompts))
    if config.duplicate_cosine < 1:
        vectors = encode(prompts, config.encoder)
        unique = on_cluster(keep_first, len(prompts))(vectors, config.duplicate_cosine)
        kept = unique.kept
        for row in np.setdiff1d(np.arange(len(prompts)), kept):
            keeper, cosine = prompts[unique.keeper[row]], unique.score[row]
            limit = f"allowed: below {config.duplicate_cosine:g}"
            reason = f"near duplicate: cosine {cosine:.3f} to {keeper[:80]!r}; {limit}"
            rejected.append(Rejected(where[row], reason))
    logger.info("generate: %d prompts kept, %d rejected", len(kept), len(rejected))
    chosen = [prompts[row] for row in kept]
    return pa.table([list(map(prompt_id, chosen)), chosen], schema=SCHEMA), rejected


def read_prompts(uri: str, column: str) -> Iterator[PromptRow]:
    """Yield each row of a file of prompts.

    Raises:
        UserError: the file is of an unknown kind, or has no such column.
    """
    return _reader(uri)(uri, (column,) if column else PROMPT_COLUMNS)


def encode(prompts: Sequence[str], encoder: str) -> np.ndarray:
    """Return the vectors (N, 384) of prompts, by Ray tasks where there are many and a cluster."""
    parts = list(in_portions(prompts, ENCODED_AT_ONCE))
    function = functools.partial(_encode, encoder)
    spread = map_in_order if ray.is_initialized() and len(parts) > 1 else map
    return np.concatenate([np.empty((0, DIMENSIONS), np.float32), *spread(function, parts)])


def _encode(encoder: str, prompts: Sequence[str]) -> np.ndarray:
    return PromptEncoder(encoder).encode(prompts)


def _fit_prompts(config: GenerateConfig, rejected: list[Rejected]) -> tuple[list[str], list[str]]:
    """Return positions and normal forms of the distinct fit prompts; add the others."""
    rules = PromptRules(config.clean, read_blocked(config.clean.blocked_words))
    first: dict[str, str] = {}
    rows = read_prompts(config.prompts, config.prompt_column)
    for part in in_portions(rows, _ROWS_AT_ONCE):
        rejected += [row for row in part if isinstance(row, Rejected)]
        texts = [row for row in part if not isinstance(row, Rejected)]
        for (where, _), (prompt, reason) in zip(texts, _judge(config, rules, texts), strict=True):
            if prompt in first:
                reason = f"repeated prompt: {first[prompt]} has it too"
            if reason:
                rejected.append(Rejected(where, reason))
            else:
                first[prompt] = where
    return list(first.values()), list(first)


def _judge(
    config: GenerateConfig, rules: PromptRules, rows: Sequence[tuple[str, Any]]
) -> Iterator[tuple[str, str | None]]:
    """Yield the normal form of each row's prompt, empty if unreadable, and why it is unfit."""
    unreadable = [prompt_reason(text) for _, text in rows]
    prompts = [
        "" if reason else normalise(text)
        for (_, text), reason in zip(rows, unreadable, strict=True)
    ]
    unfit = rules.reasons(prompts, functools.partial(count_unknown, folder=config.encoder))
    for prompt, *reasons in zip(prompts, unreadable, unfit, strict=True):
        yield prompt, next(filter(None, reasons), None)


def _reader(uri: str) -> Callable[[str, tuple[str, ...]], Iterator[PromptRow]]:
    name = uri.lower()
    kinds = {
        TEXT_ENDS: _text_rows,
        csv_table.ENDS: _csv_rows,
        json_lines.ENDS: _json_rows,
        (".parquet",): _parquet_rows,
    }
    for ends, reader in kinds.items():
        if name.endswith(ends):
            return reader
    allowed = ", ".join(end for ends in kinds for end in ends)
    raise UserError(f"prompts is {uri!r}; allowed: a file whose name ends with {allowed}")


def _text_rows(uri: str, columns: tuple[str, ...]) -> Iterator[PromptRow]:
    with opened_text(uri) as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield f"line {number}", line


def _csv_rows(uri: str, columns: tuple[str, ...]) -> Iterator[PromptRow]:
    source = PictureSource(path=uri, name="prompts")
    with opened_text(uri) as text:
        records = csv_table.read_records(text, source, (columns,), "--prompt-column")
        for record in records:
            yield record if isinstance(record, Rejected) else _named(record, columns)


def _json_rows(uri: str, columns: tuple[str, ...]) -> Iterator[PromptRow]:
    source = PictureSource(path=uri, name="prompts")
    with opened_text(uri) as text:
        for record in json_lines.read_records(text, source, (columns,)):
            yield record if isinstance(record, Rejected) else _named(record, columns)


def _named(record: tuple[str, Any], columns: tuple[str, ...]) -> PromptRow:
    """Return the first of the columns that a record has."""
    where, cells = record
    name = next((name for name in columns if name in cells), None)
    if name is None:
        return Rejected(where, f"no prompt: none of {list(columns)} is in {[*cells]}")
    return where, cells[name]


def _parquet_rows(uri: str, columns: tuple[str, ...]) -> Iterator[PromptRow]:
    number = 0
    try:
        with closing(Parquet(uri)) as opened:
            names = opened.table.schema_arrow.names
            column = next((name for name in columns if name in names), None)
            if column is None:
                raise UserError(
                    f"prompts: {uri} has the columns {names}; needed: one of {list(columns)}, or "
                    "another named with --prompt-column"
                )
            for batch in opened.table.iter_batches(_ROWS_AT_ONCE, columns=[column]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield f"row {number}", text
    except UserError:
        raise
    except (OSError, ValueError, *DAMAGES) as error:
        raise UserError(f"prompts: {uri} cannot be read after row {number}: {error}") from error
