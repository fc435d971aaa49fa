"""Folders of pictures with the prompt in a text file beside each: `a.txt` beside `a.png`."""

import posixpath
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources import files
from img2prompt.data.sources.base import Format, Layout
from img2prompt.data.sources.folder import (
    LARGEST_TEXT,
    PICTURE_ENDS,
    TEXT_END,
    decode_text,
    file_names,
    is_picture,
    is_text,
)
from img2prompt.data.sources.left_out import LeftOut, with_left_out
from img2prompt.data.sources.portions import PORTION, in_portions
from img2prompt.data.sources.prefetch import in_order, with_sizes
from img2prompt.data.sources.rows import Rejected, Row, new_row


def portions(source: PictureSource) -> Iterator[list[Any]]:
    """Yield the names of pictures and texts that share a stem, in all folders of the path."""
    left_out = LeftOut(source.name, f"pictures and {TEXT_END}")
    stems = _stems(file_names(source.path, _is_read, left_out))
    return with_left_out(in_portions(stems, PORTION), left_out)


def list_rows(source: PictureSource, stems: Iterable[list[str]]) -> Iterator[Row | Rejected]:
    """Yield index rows of the pictures in groups of files that share a stem."""
    read = in_order(lambda names: _rows_of_stem(names, source), stems)
    return with_sizes(row for rows in read for row in rows)


def _fits(layout: Layout) -> bool:
    return bool(layout.stems(*PICTURE_ENDS) & layout.stems(TEXT_END))


FORMAT = Format(
    "sidecar", "a.txt beside a.png", _fits, portions, list_rows, overrides=("metadata",)
)


def _is_read(name: str) -> bool:
    return is_picture(name) or is_text(name)


def _stems(names: Iterable[str]) -> Iterator[list[str]]:
    """Yield the pictures and texts of each stem."""
    for _, folder in groupby(names, key=posixpath.dirname):
        stems: dict[str, list[str]] = {}
        for name in folder:
            stems.setdefault(posixpath.splitext(name)[0], []).append(name)
        yield from stems.values()


def _rows_of_stem(names: list[str], source: PictureSource) -> list[Row | Rejected]:
    texts = [name for name in names if is_text(name)]
    pictures = [name for name in names if is_picture(name)]
    if not pictures:
        row_id = f"{source.name}/{names[0]}"
        return [Rejected(row_id, "no picture: no file with this stem is one")]
    if not texts:
        reason = f"no prompt: {posixpath.splitext(names[0])[0]}{TEXT_END} is not beside it"
        return [Rejected(f"{source.name}/{name}", reason) for name in pictures]
    return [_row(name, texts[0], source) for name in pictures]


def _row(name: str, text: str, source: PictureSource) -> Row | Rejected:
    row_id, text_uri = f"{source.name}/{name}", files.inside(source.path, text)
    try:
        with files.SteadyFile(text_uri) as file:
            if file.size > LARGEST_TEXT:
                reason = f"no prompt: {text} has {file.size} bytes; allowed: {LARGEST_TEXT}"
                return Rejected(row_id, reason)
            prompt = decode_text(file.readall())
    except (OSError, ValueError) as error:
        return Rejected(row_id, f"unreadable prompt: {text_uri}: {error}")
    return new_row(row_id, source.name, prompt, files.inside(source.path, name))
