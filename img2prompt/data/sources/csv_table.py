"""The records of a CSV file. Lines that are no CSV record cost only themselves."""

import csv
import io
from collections.abc import Iterator

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources.rows import Rejected
from img2prompt.errors import UserError

Record = tuple[str, dict[str, str]]


def read_records(
    text: io.TextIOBase, source: PictureSource, needed: tuple[tuple[str, ...], ...]
) -> Iterator[Record | Rejected]:
    """Where each record stands (`<source>/line <number>`) and its cells by column.

    `needed`: alternatives for each column that must be there.

    Raises:
        UserError: the header line lacks a needed column.
    """
    reader = csv.reader(text, strict=True)  # type: ignore[arg-type]
    header = _header(reader, source, needed)
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


def _header(
    reader: Iterator[list[str]], source: PictureSource, needed: tuple[tuple[str, ...], ...]
) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{source.path}: the header line is not CSV: {error}") from None
    if not all(set(names) & set(header) for names in needed):
        wanted = " and ".join(f"one of {list(names)}" for names in needed)
        raise UserError(
            f"{source.path} has the columns {header}; needed: {wanted}. Name the columns of source "
            f"{source.name!r} with --sources.N.file_column and --sources.N.prompt_column (N: its "
            "place in the list, from 0), or give a comma-separated UTF-8 file with a header line"
        )
    return header
