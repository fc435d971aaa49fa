"""Tables that list pictures with their prompts: what CSV, JSON lines and Kaggle have in common.

Beside the file and the prompt a record may have `id`, `source` and the columns of `rows.SETTINGS`.
Ids are `<source name>/<id, else file>`: tables of several sources often count from 1.
"""

import io
import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources import files, listing
from img2prompt.data.sources.base import Format, Layout
from img2prompt.data.sources.portions import PORTION, in_portions
from img2prompt.data.sources.prefetch import with_sizes
from img2prompt.data.sources.rows import (
    PROMPT_COLUMNS,
    SETTINGS,
    Rejected,
    Row,
    new_row,
    undecodable,
)
from img2prompt.errors import UserError

FILE_COLUMNS = ("file", "file_name", "filename", "image")

_TEXTS = ("id", "source", "generator", "sampler")
_BUFFER_BYTES = 1 << 20

Record = tuple[str, Mapping[str, Any]]
"""The position of a record, as the id of a rejected row, and its values by column."""
ReadRecords = Callable[
    [io.TextIOBase, PictureSource, tuple[tuple[str, ...], ...]], Iterator[Record | Rejected]
]


def relative_uris(source: PictureSource, table: str) -> Callable[[str], str]:
    """Return a function from a file name in the table to the URI of the picture."""
    folder = files.absolute(source.pictures) if source.pictures else posixpath.dirname(table)
    return lambda name: files.inside(folder, name)


@dataclass(frozen=True)
class Table:
    """One kind of table."""

    ends: tuple[str, ...]
    """Ends of its file's name."""
    read_records: ReadRecords
    """Yield the records of the text, given the alternative names of the needed columns."""
    file_columns: tuple[str, ...] = FILE_COLUMNS
    """Columns that may name the picture; the first that is present counts."""
    picture_uris: Callable[[PictureSource, str], Callable[[str], str]] = relative_uris
    """From source and table to a function from the picture's name to its URI."""


def table_format(
    name: str,
    *,
    needs: str,
    fits: Callable[[Layout], bool],
    table: Table,
    overrides: tuple[str, ...],
) -> Format[PictureSource]:
    """Return the format of sources that are listed by such a table."""
    return Format(
        name,
        needs,
        fits,
        portions=partial(portions, table),
        list_rows=lambda source, rows: with_sizes(rows),
        digest=partial(digest, table),
        overrides=overrides,
    )


def portions(table: Table, source: PictureSource) -> Iterator[list[Row | Rejected]]:
    """Yield the rows of a table, in its order, without opening pictures.

    Raises:
        UserError: the table is missing or lacks a needed column.
    """
    return in_portions(_rows(table, source), PORTION)


def digest(table: Table, source: PictureSource) -> str:
    """Return 16 hex digits of the table's bytes; UserError when the table is missing."""
    return files.content_digest(find_table(table, source))


def find_table(table: Table, source: PictureSource) -> str:
    """Return the URI of a source's table: its path, or the one file of its kind in that folder."""
    if listing.is_file(source.path):
        return source.path
    names = [name for name in listing.names(source.path) if name.endswith(table.ends)]
    # The Hugging Face layout names it `metadata`, and may have other tables beside it.
    named = [name for name in names if name.split(".")[0] == "metadata"]
    chosen = named if len(named) == 1 else names
    if len(chosen) != 1:
        raise UserError(
            f"{source.path} contains {len(names)} files that end with {' or '.join(table.ends)} "
            f"({', '.join(names[:5]) or 'none'}): give the one to read as path of {source.name!r}"
        )
    return files.inside(source.path, chosen[0])


@contextmanager
def opened_text(uri: str) -> Iterator[io.TextIOWrapper]:
    """Open a table's text. Bytes that are not UTF-8 become lone surrogates."""
    with (
        _opened(uri) as stream,
        io.TextIOWrapper(
            stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as text,
    ):
        yield text


@contextmanager
def _opened(uri: str) -> Iterator[BinaryIO]:
    """Open a table's bytes, decompressed when its name ends with `.gz`."""
    with io.BufferedReader(files.SteadyFile(uri), _BUFFER_BYTES) as file:
        if uri.endswith(".gz"):
            with pa.CompressedInputStream(file, "gzip") as stream:
                yield io.BufferedReader(stream, _BUFFER_BYTES)  # type: ignore[arg-type]
        else:
            yield file


def _rows(table: Table, source: PictureSource) -> Iterator[Row | Rejected]:
    """Yield rows without sizes."""
    uri = find_table(table, source)
    columns = _Columns(
        (source.file_column,) if source.file_column else table.file_columns,
        (source.prompt_column,) if source.prompt_column else PROMPT_COLUMNS,
    )
    picture_uri = table.picture_uris(source, uri)
    with opened_text(uri) as text:
        records = table.read_records(text, source, (columns.file, columns.prompt))
        try:
            for record in records:
                if isinstance(record, Rejected):
                    yield record
                else:
                    yield _row(*record, columns, picture_uri, source)
        except OSError as error:
            yield Rejected(uri, f"unreadable table: {error}; what follows is not indexed")


@dataclass(frozen=True)
class _Columns:
    """Alternative names of the two needed columns."""

    file: tuple[str, ...]
    prompt: tuple[str, ...]


def _row(
    where: str,
    cells: Mapping[str, Any],
    columns: _Columns,
    picture_uri: Callable[[str], str],
    source: PictureSource,
) -> Row | Rejected:
    file_column, prompt_column = _present(cells, columns.file), _present(cells, columns.prompt)
    for name in (file_column, prompt_column, *_TEXTS):
        if reason := undecodable(name, str(cells.get(name, ""))):
            return Rejected(where, reason)
    file = cells.get(file_column)
    if not file or not isinstance(file, str):
        problem = f"{file!r}; allowed: a file name" if file else "empty"
        return Rejected(where, f"no picture: column {file_column!r} is {problem}")
    if prompt_column not in cells:
        return Rejected(where, f"no prompt: none of {list(columns.prompt)} is in {[*cells]}")
    return new_row(
        f"{source.name}/{cells.get('id') or file}",
        str(cells.get("source") or source.name),
        cells[prompt_column],
        picture_uri(file),
        settings={name: cells[name] for name in SETTINGS if name in cells},
    )


def _present(cells: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first name that is a column, or the first of all."""
    return next((name for name in names if name in cells), names[0])
