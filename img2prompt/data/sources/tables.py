"""Pictures listed with their prompts in a table: CSV, JSON lines, or Kaggle's `prompts.csv`.

Beside the file and the prompt a record may have `id`, `source` and the columns of `rows.SETTINGS`.
Ids are `<source name>/<id, else file>`: tables of several sources often count from 1.
"""

import hashlib
import io
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources import csv_table, files, listing
from img2prompt.data.sources.pieces import PORTION, in_pieces
from img2prompt.data.sources.rows import (
    PROMPT_COLUMNS,
    SETTINGS,
    Rejected,
    Row,
    new_row,
    undecodable,
)
from img2prompt.data.sources.waiting import with_sizes
from img2prompt.errors import UserError

CSV_ENDS = (".csv", ".csv.gz")
JSON_ENDS = (".jsonl", ".ndjson", ".jsonl.gz")
FILE_COLUMNS = ("file", "file_name", "filename", "image")
KAGGLE_TABLE, KAGGLE_PICTURES, KAGGLE_COLUMN = "prompts.csv", "images", "imgId"

_ENDS = {"csv": CSV_ENDS, "jsonl": JSON_ENDS, "kaggle": (KAGGLE_TABLE,)}
_TEXTS = ("id", "source", "generator", "sampler")
_BUFFER_BYTES = 1 << 20


def portions(source: PictureSource) -> Iterator[list[Row | Rejected]]:
    """Rows of a table, in its order; their pictures were not looked at.

    Raises:
        UserError: the table is missing or lacks a needed column.
    """
    return in_pieces(_rows(source), PORTION)


def list_pictures(
    source: PictureSource, rows: Iterable[Row | Rejected]
) -> Iterator[Row | Rejected]:
    """Index rows; of the pictures only the headers are read."""
    return with_sizes(rows)


def digest(source: PictureSource) -> str:
    """16 hex digits of the table's bytes; UserError when there is none."""
    found = hashlib.sha256()
    with files.SteadyFile(find_table(source)) as file:
        while block := file.read(_BUFFER_BYTES):
            found.update(block)
    return found.hexdigest()[:16]


def find_table(source: PictureSource) -> str:
    """The table of a source: its path, or the one file of its kind in that folder."""
    ends = _ENDS[source.format]
    if listing.is_file(source.path):
        return source.path
    names = [name for name in listing.names(source.path) if name.endswith(ends)]
    # The Hugging Face layout calls it so, and may have other tables beside it.
    named = [name for name in names if name.split(".")[0] == "metadata"]
    chosen = named if len(named) == 1 else names
    if len(chosen) != 1:
        raise UserError(
            f"{source.path} holds {len(names)} files that end with {' or '.join(ends)} "
            f"({', '.join(names[:5]) or 'none'}): give the one to read as path of {source.name!r}"
        )
    return files.inside(source.path, chosen[0])


@contextmanager
def _opened(uri: str) -> Iterator[BinaryIO]:
    """A table's bytes, unpacked when its name ends with `.gz`."""
    with io.BufferedReader(files.SteadyFile(uri), _BUFFER_BYTES) as file:
        if uri.endswith(".gz"):
            with pa.CompressedInputStream(file, "gzip") as stream:
                yield io.BufferedReader(stream, _BUFFER_BYTES)  # type: ignore[arg-type]
        else:
            yield file


def _rows(source: PictureSource) -> Iterator[Row | Rejected]:
    """Rows without sizes. Bytes that are not UTF-8 come through as lone surrogates."""
    table = find_table(source)
    files_of = (source.file_column,) if source.file_column else FILE_COLUMNS
    prompts = (source.prompt_column,) if source.prompt_column else PROMPT_COLUMNS
    place = _place(source, table)
    if source.format == "kaggle":
        files_of = (source.file_column or KAGGLE_COLUMN,)
    with (
        _opened(table) as stream,
        io.TextIOWrapper(
            stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as text,
    ):
        if source.format == "jsonl":
            records = _json_records(text, source)
        else:
            records = csv_table.read_records(text, source, (files_of, prompts))
        try:
            for record in records:
                if isinstance(record, Rejected):
                    yield record
                else:
                    yield _row(*record, files_of, prompts, place, source)
        except OSError as error:
            yield Rejected(table, f"unreadable table: {error}; what follows is not indexed")


def _json_records(
    text: io.TextIOBase, source: PictureSource
) -> Iterator[tuple[str, dict[str, Any]] | Rejected]:
    for number, line in enumerate(text, start=1):
        where = f"{source.name}/line {number}"
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Rejected(where, f"bad JSON: {error}; allowed: one object a line")
            continue
        if isinstance(found, dict):
            yield where, found
        else:
            yield Rejected(where, f"bad JSON: {line[:40]!r}; allowed: one object a line")


def _place(source: PictureSource, table: str) -> Callable[[str], str]:
    """From a file name in a table to where the picture lies."""
    folder = files.absolute(source.pictures) if source.pictures else posixpath.dirname(table)
    if source.format != "kaggle":
        return lambda name: files.inside(folder, name)
    if not source.pictures:
        folder = files.inside(folder, KAGGLE_PICTURES)
    by_id = {posixpath.splitext(name)[0]: name for name in listing.names(folder)}
    return lambda name: files.inside(folder, by_id.get(name, f"{name}.png"))


def _row(
    where: str,
    named: Mapping[str, Any],
    files_of: tuple[str, ...],
    prompts: tuple[str, ...],
    place: Callable[[str], str],
    source: PictureSource,
) -> Row | Rejected:
    file_column, prompt_column = _present(named, files_of), _present(named, prompts)
    for name in (file_column, prompt_column, *_TEXTS):
        if reason := undecodable(name, str(named.get(name, ""))):
            return Rejected(where, reason)
    file = named.get(file_column)
    if not file or not isinstance(file, str):
        found = f"{file!r}; allowed: a file name" if file else "empty"
        return Rejected(where, f"no picture: column {file_column!r} is {found}")
    if prompt_column not in named:
        return Rejected(where, f"no prompt: none of {list(prompts)} is in {[*named]}")
    return new_row(
        f"{source.name}/{named.get('id') or file}",
        str(named.get("source") or source.name),
        named[prompt_column],
        place(file),
        settings={name: named[name] for name in SETTINGS if name in named},
    )


def _present(named: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in named), names[0])
