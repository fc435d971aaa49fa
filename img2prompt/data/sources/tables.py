"""Tables that list pictures with their prompts: what CSV, JSON lines and Kaggle have in common.

Beside the file and the prompt a record may have `id`, `source` and the columns of `rows.SETTINGS`.
Ids are `<source name>/<id, else file>`: tables of several sources often count from 1. The tables
of a folder's folders (`train/metadata.csv`) have `<source name>/<folder>/`.
"""

import io
import logging
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from img2prompt.artifact import digest_of
from img2prompt.config.sources import PictureSource
from img2prompt.data.hashed import HashedSet
from img2prompt.data.sources import files, listing
from img2prompt.data.sources.base import Format, Layout
from img2prompt.data.sources.captions import choose_caption, one_row_a_picture
from img2prompt.data.sources.left_out import LeftOut
from img2prompt.data.sources.portions import PORTION, in_portions
from img2prompt.data.sources.prefetch import with_sizes
from img2prompt.data.sources.rows import (
    FILE_COLUMNS,
    PROMPT_COLUMNS,
    SETTINGS,
    Rejected,
    Row,
    new_row,
    undecodable,
)
from img2prompt.data.sources.table_files import (
    find_tables,
    is_metadata,
    opened_text,
    picture_folder,
)
from img2prompt.errors import UserError

logger = logging.getLogger(__name__)

_TEXTS = ("id", "source", "generator", "sampler")
_ROWS_AT_ONCE = 4096
_GLANCE = 16
"""Records whose pictures show where the pictures are."""

Record = tuple[str, Mapping[str, Any]]
"""The position of a record, as the id of a rejected row, and its values by column."""
ReadRecords = Callable[
    [io.TextIOBase, PictureSource, tuple[tuple[str, ...], ...]], Iterator[Record | Rejected]
]

PictureUris = Callable[[PictureSource, str, Sequence[str]], Callable[[str], str]]


def relative_uris(source: PictureSource, table: str, names: Sequence[str]) -> Callable[[str], str]:
    """Return a function from a file name in the table, such as the first `names`, to its URI."""
    folder = picture_folder(table, source, names)
    if folder != posixpath.dirname(table):
        logger.info("source %s: the pictures of %s are in %s", source.name, table, folder)
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
    picture_uris: PictureUris = relative_uris
    """From source, table and the first names to a function from a picture's name to its URI."""


def has_table(layout: Layout, ends: tuple[str, ...]) -> bool:
    """Return whether a folder has a table, or its folders have tables named `metadata`."""
    return bool(layout.top_ending(*ends) or any(map(is_metadata, layout.ending(*ends))))


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
        list_rows=list_rows,
        digest=partial(digest, table),
        overrides=overrides,
    )


def portions(table: Table, source: PictureSource) -> Iterator[list[Row | Rejected]]:
    """Yield the rows of a source's tables, in their order, without opening pictures.

    Raises:
        UserError: a table is missing or lacks a needed column.
    """
    return in_portions(_rows(table, source), PORTION)


def list_rows(source: PictureSource, rows: Iterable[Row | Rejected]) -> Iterator[Row | Rejected]:
    """Yield the rows with the sizes of their pictures."""
    for row in with_sizes(rows):
        if isinstance(row, Rejected) and row.kind == "missing picture":
            hint = "file names are relative to the table, or to --sources.N.pictures"
            yield Rejected(row.id, f"{row.reason}; {hint}")
        else:
            yield row


def digest(table: Table, source: PictureSource) -> str:
    """Return 16 hex digits of the tables' bytes; UserError when there is none."""
    digests = [
        (folder, files.content_digest(uri)) for uri, folder in find_tables(source, table.ends)
    ]
    if len(digests) == 1:
        return digests[0][1]
    return digest_of("".join(f"{folder} {of_table} " for folder, of_table in digests).encode())


def _rows(table: Table, source: PictureSource) -> Iterator[Row | Rejected]:
    """Yield rows without sizes, then what the tables do not list."""
    listed = HashedSet()
    tables = find_tables(source, table.ends)
    for uri, folder in tables:
        reader = _TableReader(table, source, uri, folder)
        for piece in in_portions(one_row_a_picture(reader.rows, source), _ROWS_AT_ONCE):
            listed.add(reader.take_pictures())
            yield from piece
        listed.add(reader.take_pictures())
    if not listing.is_file(source.path):
        yield from _unlisted(source, listed, {uri for uri, _ in tables})


def _unlisted(source: PictureSource, listed: HashedSet, tables: set[str]) -> list[Rejected]:
    """Return rejected rows for the files of a folder that its tables do not list."""
    left_out = LeftOut(source.name, "the tables and the pictures that they list")
    try:
        for entry in listing.walk(source.path):
            uri = files.inside(source.path, entry.name)
            if entry.problem:
                left_out.refuse(entry.name, entry.problem)
            elif not entry.name.endswith("/") and uri not in tables and _normal(uri) not in listed:
                left_out.add(entry.name)
    except UserError as error:  # the pictures that are listed can be read all the same
        left_out.refuse("", f"unlisted folder: {error}")
    return left_out.rows()


def _normal(uri: str) -> str:
    """Return a URI without `.` and `..` in its path."""
    scheme, separator, path = uri.rpartition("://")
    return scheme + separator + posixpath.normpath(path)


class _TableReader:
    """Reads the rows of one table.

    Args:
        folder: name of the table's folder in the source, which begins the ids; empty for the
            source's only table.
    """

    def __init__(self, table: Table, source: PictureSource, uri: str, folder: str) -> None:
        self._table, self._source, self._uri = table, source, uri
        base = f"{source.name}/{folder}" if folder else source.name
        self._named = replace(source, name=base, path=uri)
        self._columns = _Columns(
            (source.file_column,) if source.file_column else table.file_columns,
            (source.prompt_column,) if source.prompt_column else PROMPT_COLUMNS,
        )
        self._picture_uri = table.picture_uris(source, uri, self._first_names())
        self._pictures: list[str] = []

    def take_pictures(self) -> list[str]:
        """Return the pictures that were listed since the last call, usable or not."""
        pictures, self._pictures = self._pictures, []
        return pictures

    def rows(self) -> Iterator[Row | Rejected]:
        for record in self._records():
            yield record if isinstance(record, Rejected) else self._row(*record)

    def _records(self) -> Iterator[Record | Rejected]:
        with opened_text(self._uri) as text:
            needed = (self._columns.file, self._columns.prompt)
            try:
                yield from self._table.read_records(text, self._named, needed)
            except OSError as error:
                reason = f"unreadable table: {error}; what follows is not indexed"
                yield Rejected(self._uri, reason)

    def _first_names(self) -> list[str]:
        records = islice(self._records(), _GLANCE)
        cells = [record[1] for record in records if not isinstance(record, Rejected)]
        values = [row.get(_present(row, self._columns.file)) for row in cells]
        return [value for value in values if isinstance(value, str) and value]

    def _row(self, where: str, cells: Mapping[str, Any]) -> Row | Rejected:
        source, columns = self._source, self._columns
        file_column, prompt_column = _present(cells, columns.file), _present(cells, columns.prompt)
        for name in (file_column, prompt_column, *_TEXTS):
            if reason := undecodable(name, str(cells.get(name, ""))):
                return Rejected(where, reason)
        file = cells.get(file_column)
        if not file or not isinstance(file, str):
            problem = f"{file!r}; allowed: a file name" if file else "empty"
            return Rejected(where, f"no picture: column {file_column!r} is {problem}")
        uri = self._picture_uri(file)
        self._pictures.append(_normal(uri))
        if prompt_column not in cells:
            return Rejected(where, f"no prompt: none of {list(columns.prompt)} is in {[*cells]}")
        row_id = f"{self._named.name}/{cells.get('id') or file}"
        return new_row(
            row_id,
            str(cells.get("source") or source.name),
            choose_caption(cells[prompt_column], source, row_id),
            uri,
            settings={name: cells[name] for name in SETTINGS if name in cells},
        )


@dataclass(frozen=True)
class _Columns:
    """Alternative names of the two needed columns."""

    file: tuple[str, ...]
    prompt: tuple[str, ...]


def _present(cells: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first name that is a column, or the first of all."""
    return next((name for name in names if name in cells), names[0])
