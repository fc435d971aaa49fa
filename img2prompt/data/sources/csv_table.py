"""A CSV file that lists pictures and prompts. Lines that are not valid CSV cost only themselves.

The separator is the one with which the header line has the needed columns: a comma, a semicolon
(spreadsheets in many languages), a tab or a bar. In a `.tsv` file the tab is tried first.
"""

import csv
import io
from collections.abc import Iterator
from functools import partial
from itertools import chain

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources.rows import Rejected
from img2prompt.data.sources.tables import Record, Table, has_table, table_format
from img2prompt.errors import UserError

ENDS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
TAB_ENDS = (".tsv", ".tsv.gz")
SEPARATORS = (",", ";", "\t", "|")
OPTIONS = (
    "--sources.N.file_column and --sources.N.prompt_column (N: its position in the list, from 0)"
)


def read_records(
    text: io.TextIOBase,
    source: PictureSource,
    needed: tuple[tuple[str, ...], ...],
    options: str = OPTIONS,
) -> Iterator[Record | Rejected]:
    """Yield each record's position (`<source>/line <number>`) and its cells by column.

    Args:
        text: opened with `newline=""`.
        source: for messages.
        needed: alternative names of each column that must be present.
        options: how to name the columns, for messages.

    Raises:
        UserError: the header line lacks a needed column.
    """
    first_line = text.readline()
    separators = SEPARATORS
    if source.path.lower().endswith(TAB_ENDS):
        separators = tuple(sorted(SEPARATORS, key=lambda separator: separator != "\t"))
    separator = _separator(first_line, needed, separators)
    reader = csv.reader(chain([first_line], text), strict=True, delimiter=separator)
    header = _header(reader, source, needed, options)
    while True:
        first = reader.line_num + 1
        where = f"{source.name}/line {first}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Rejected(where, f"bad CSV: lines {first} to {reader.line_num}: {error}")
            continue
        if cells is None:
            return
        if len(cells) == len(header):
            yield where, dict(zip(header, cells, strict=True))
        elif cells:
            yield Rejected(where, f"bad CSV: {len(cells)} cells; the header has {len(header)}")


def _separator(line: str, needed: tuple[tuple[str, ...], ...], separators: tuple[str, ...]) -> str:
    """Return the first separator that gives the needed columns, or else the most columns."""
    headers = {separator: line.rstrip("\r\n").split(separator) for separator in separators}
    for separator, header in headers.items():
        columns = {name.strip('"') for name in header}
        if all(columns & set(names) for names in needed):
            return separator
    return max(headers, key=lambda separator: len(headers[separator]))


def _header(
    reader: Iterator[list[str]],
    source: PictureSource,
    needed: tuple[tuple[str, ...], ...],
    options: str,
) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{source.path}: the header line is not CSV: {error}") from None
    if not all(set(names) & set(header) for names in needed):
        wanted = " and ".join(f"one of {list(names)}" for names in needed)
        raise UserError(
            f"{source.path} has the columns {header}; needed: {wanted}. Name the columns of source "
            f"{source.name!r} with {options}, or give a UTF-8 or UTF-16 file with a header line"
        )
    return header


FORMAT = table_format(
    "csv",
    needs="a .csv with the columns file and prompt (or others, named by option), and the pictures",
    fits=partial(has_table, ends=ENDS),
    table=Table(ENDS, read_records),
    overrides=("metadata",),
)
