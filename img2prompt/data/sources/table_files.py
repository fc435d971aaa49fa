"""Files of tables: which ones a source has, their text encoding, and where their pictures are."""

import codecs
import io
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources import files, listing
from img2prompt.errors import UserError

METADATA = "metadata"
"""Stem of the tables in the Hugging Face layout: `metadata.csv`, `metadata.jsonl`."""

_BUFFER_BYTES = 1 << 20
_MOST_FOLDERS = 50


def is_metadata(name: str) -> bool:
    """Return whether a file is named like a table of the Hugging Face layout."""
    return name.rpartition("/")[2].partition(".")[0] == METADATA


def find_tables(source: PictureSource, ends: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the tables of a source, each with the name of its folder in the source.

    They are the source's path itself, the one file of its kind in that folder, or `metadata` files
    in the folders below it (`train/metadata.csv`, `test/metadata.csv`).

    Raises:
        UserError: there is none, or more than one in the folder.
    """
    if listing.is_file(source.path):
        return [(source.path, "")]
    names = [
        name
        for name in listing.names(source.path)
        if name.endswith(ends) and not listing.is_system_file(name)
    ]
    named = [name for name in names if is_metadata(name)]
    chosen = named if len(named) == 1 else names
    if len(chosen) == 1:
        return [(files.inside(source.path, chosen[0]), "")]
    below = [] if names else _metadata_below(source.path, ends)
    if not below:
        raise UserError(
            f"{source.path} contains {len(names)} files that end with {' or '.join(ends)} "
            f"({', '.join(names[:5]) or 'none'}): give the one to read as path of {source.name!r}"
        )
    return [(files.inside(source.path, name), posixpath.dirname(name)) for name in below]


def _metadata_below(path: str, ends: tuple[str, ...]) -> list[str]:
    return sorted(
        entry.name
        for entry in listing.walk(path)
        if entry.name.endswith(ends)
        and is_metadata(entry.name)
        and not listing.is_system_file(entry.name)
    )


@contextmanager
def opened_text(uri: str) -> Iterator[io.TextIOWrapper]:
    """Open a table as text, decompressed when its name ends with `.gz`.

    UTF-8 and UTF-16 are told apart by their first bytes. Bytes that are not UTF-8 become lone
    surrogates, those that are not UTF-16 become U+FFFD.
    """
    with _opened(uri, 4) as stream:
        encoding = _encoding(stream.read(4))
    with _opened(uri, _BUFFER_BYTES) as stream:
        errors = "surrogateescape" if encoding == "utf-8-sig" else "replace"
        with io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="") as text:
            yield text


def _encoding(start: bytes) -> str:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(start) > 1 and not start[1] and start[0]:
        return "utf-16-le"
    if len(start) > 1 and not start[0] and start[1]:
        return "utf-16-be"
    return "utf-8-sig"


@contextmanager
def _opened(uri: str, buffer: int) -> Iterator[BinaryIO]:
    with io.BufferedReader(files.SteadyFile(uri), _BUFFER_BYTES) as file:
        if uri.endswith(".gz"):
            with pa.CompressedInputStream(file, "gzip") as stream:
                yield io.BufferedReader(stream, buffer)  # type: ignore[arg-type]
        else:
            yield file


def picture_folder(table: str, source: PictureSource, names: Iterable[str]) -> str:
    """Return the folder that a table's file names are relative to.

    It is the source's `pictures`, else the table's folder; where none of the first `names` exists
    beside the table but some do in exactly one folder beside it, that folder.
    """
    if source.pictures:
        return files.absolute(source.pictures)
    beside = posixpath.dirname(table)
    names = list(names)
    if not names or _holds_any(beside, names):
        return beside
    folders = [name[:-1] for name in listing.names(beside) if name.endswith("/")]
    paths = [files.inside(beside, name) for name in folders[:_MOST_FOLDERS]]
    holding = [path for path in paths if _holds_any(path, names)]
    return holding[0] if len(holding) == 1 else beside


def _holds_any(folder: str, names: list[str]) -> bool:
    return any(files.is_existing(files.inside(folder, name)) for name in names)
