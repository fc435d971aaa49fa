"""Pictures in a folder, listed with their prompts in a CSV file.

Columns beside the file and the prompt, all optional: `id` (else `<source name>/<file>`), `source`,
`generator` and `seed` (null unless it is a signed 64-bit whole number). Lines that are no CSV
record cost only themselves; the rest is read on.
"""

import csv
import hashlib
import io
import posixpath
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from img2prompt.artifact import join, open_uri
from img2prompt.config import CsvSource
from img2prompt.data import images
from img2prompt.data.sources.rows import Rejected, Row, unread_picture
from img2prompt.errors import UserError

LARGEST_MEGAPIXELS = 1000.0
"""A header that claims more is damaged or hostile; what is worth training on is decided later."""

_OPTIONAL = ("id", "source", "generator", "seed")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(r"([+-]?\d{1,19})(?:\.0+)?")  # tables with gaps hold whole numbers as 12.0
_HEADER_BYTES = 65536
_THREADS = 8  # opening a file of an object store waits for the network
_ROWS_AT_ONCE = 512


def list_pictures(source: CsvSource) -> Iterator[Row | Rejected]:
    """Index rows of a CSV, in its order; of the pictures only the headers are read.

    Raises:
        UserError: the CSV is missing or lacks a needed column.
    """
    records = _records(source)
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(records, _ROWS_AT_ONCE)):
            yield from pool.map(_with_size, chunk)


def digest(source: CsvSource) -> str:
    """16 hex digits of the CSV's content; UserError when it is missing."""
    found = hashlib.sha256()
    with _open(source) as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()[:16]


def _open(source: CsvSource) -> pa.NativeFile:
    fs, path = open_uri(source.csv)
    if fs.get_file_info(path).type != pafs.FileType.File:
        raise UserError(f"{source.csv} is not a file: give the CSV of source {source.name!r}")
    return fs.open_input_stream(path)


def _records(source: CsvSource) -> Iterator[Row | Rejected]:
    """Rows without sizes. Bytes that are not UTF-8 come through as lone surrogates."""
    folder = _folder(source)
    with (
        _open(source) as stream,
        io.TextIOWrapper(
            stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as text,
    ):
        reader = csv.reader(text, strict=True)
        header = _header(reader, source)
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                where = f"{source.name}/line {first}"
                yield Rejected(where, f"bad CSV: lines {first} to {reader.line_num}: {error}")
                continue
            if cells is None:
                return
            if cells:
                yield _record(cells, header, f"{source.name}/line {first}", folder, source)


def _folder(source: CsvSource) -> str:
    """Where file names start from: absolute, so that workers elsewhere find the files too."""
    folder = source.pictures or posixpath.dirname(source.csv)
    return folder if "://" in folder else str(Path(folder).absolute())


def _header(reader: Iterator[list[str]], source: CsvSource) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{source.csv}: the header line is not CSV: {error}") from None
    needed = [source.file_column, source.prompt_column]
    if not set(needed) <= set(header):
        raise UserError(
            f"{source.csv} has the columns {header}; needed: {needed}. Name the columns of source "
            f"{source.name!r} with --sources.N.file_column and --sources.N.prompt_column (N: its "
            "place in the list, from 0), or give a comma-separated UTF-8 file with a header line"
        )
    return header


def _record(
    cells: list[str], header: list[str], where: str, folder: str, source: CsvSource
) -> Row | Rejected:
    if len(cells) != len(header):
        return Rejected(where, f"bad CSV: {len(cells)} cells; the header has {len(header)}")
    named = dict(zip(header, cells, strict=True))
    for column in (source.file_column, source.prompt_column, *_OPTIONAL):
        if found := _SURROGATE.search(named.get(column, "")):
            byte, at = ord(found[0]) & 0xFF, found.start() + 1
            return Rejected(
                where, f"undecodable {column}: byte {byte:#x} at character {at}; allowed: UTF-8"
            )
    if not named[source.file_column]:
        return Rejected(where, f"no picture: column {source.file_column!r} is empty")
    return _row(named, folder, source)


def _row(named: dict[str, str], folder: str, source: CsvSource) -> Row | Rejected:
    file, prompt = named[source.file_column], named[source.prompt_column]
    row_id = named.get("id") or f"{source.name}/{file}"
    if not prompt.strip():
        return Rejected(row_id, f"empty prompt: {prompt!r}; allowed: visible text")
    return {
        "id": row_id,
        "source": named.get("source") or source.name,
        "prompt": prompt,
        "uri": join(folder, file),
        "member": "",
        "width": 0,
        "height": 0,
        "generator": named.get("generator", ""),
        "seed": _seed(named.get("seed", "")),
    }


def _seed(text: str) -> int | None:
    whole = _WHOLE.fullmatch(text.strip())
    number = int(whole[1]) if whole else None
    return number if number is not None and abs(number) < 2**63 else None


def _with_size(row: Row | Rejected) -> Row | Rejected:
    if isinstance(row, Rejected):
        return row
    try:
        width, height = _probe(row["uri"])
    except (images.BadPicture, OSError, ValueError) as error:
        return unread_picture(row["id"], row["uri"], error)
    if reason := images.size_reason(width, height, LARGEST_MEGAPIXELS):
        return Rejected(row["id"], f"picture size: {reason}")
    return {**row, "width": width, "height": height}


def _probe(uri: str) -> tuple[int, int]:
    """Width and height in pixels."""
    fs, path = open_uri(uri)
    with fs.open_input_file(path) as file, io.BufferedReader(file, _HEADER_BYTES) as buffered:
        if not file.size():
            raise images.BadPicture("the file has 0 bytes")
        return images.probe(buffered)
