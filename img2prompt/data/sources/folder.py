"""Folders of pictures: the prompt in a text file beside each, or carried by the picture itself."""

import io
import posixpath
from collections.abc import Iterable, Iterator
from itertools import groupby

from img2prompt.config.sources import PictureSource
from img2prompt.data import images
from img2prompt.data.sources import files, listing
from img2prompt.data.sources.containers import HEADER_BYTES
from img2prompt.data.sources.metadata import read_metadata
from img2prompt.data.sources.metadata.base import NoPrompt
from img2prompt.data.sources.pieces import PORTION, in_pieces
from img2prompt.data.sources.rows import Rejected, Row, new_row, sized, unread_picture
from img2prompt.data.sources.waiting import in_order, probe, with_sizes

PICTURE_ENDS = (".png", ".jpg", ".jpeg", ".webp")
TEXT_END = ".txt"
LARGEST_TEXT = 1 << 20
"""Bytes. A prompt is a hundred times shorter than this."""


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_ENDS)


def is_text(name: str) -> bool:
    return name.lower().endswith(TEXT_END)


def sidecar_portions(source: PictureSource) -> Iterator[list[list[str]]]:
    """Names of the pictures and texts that share a stem, in all folders of the path."""
    return in_pieces(_pairs(source.path), PORTION)


def list_sidecars(source: PictureSource, pairs: Iterable[list[str]]) -> Iterator[Row | Rejected]:
    """Index rows of pictures with `a.txt` beside `a.png`."""
    read = in_order(lambda names: _sidecar(names, source), pairs)
    return with_sizes(row for rows in read for row in rows)


def metadata_portions(source: PictureSource) -> Iterator[list[str]]:
    """Names of the pictures in all folders of the path; empty when the path is one."""
    names = (name for name in _names(source.path) if not name or is_picture(name))
    return in_pieces(names, PORTION)


def list_metadata(source: PictureSource, names: Iterable[str]) -> Iterator[Row | Rejected]:
    """Index rows of pictures that carry their prompt themselves."""
    return in_order(lambda name: _described(name, source), names)


def _names(path: str) -> Iterator[str]:
    """Files below a path; an empty name when the path is a file itself."""
    if listing.is_file(path):
        return iter([""])
    return (entry.name for entry in listing.walk(path) if not entry.name.endswith("/"))


def _pairs(path: str) -> Iterator[list[str]]:
    """Pictures and texts that share a stem."""
    for _, folder in groupby(_names(path), key=posixpath.dirname):
        stems: dict[str, list[str]] = {}
        for name in folder:
            if is_picture(name) or is_text(name):
                stems.setdefault(posixpath.splitext(name)[0], []).append(name)
        yield from stems.values()


def _sidecar(names: list[str], source: PictureSource) -> list[Row | Rejected]:
    """The rows of files that share a stem."""
    texts = [name for name in names if is_text(name)]
    pictures = [name for name in names if is_picture(name)]
    if not pictures:
        where = f"{source.name}/{names[0]}"
        return [Rejected(where, f"no picture: none of {', '.join(PICTURE_ENDS)} has this stem")]
    if not texts:
        reason = f"no prompt: {posixpath.splitext(names[0])[0]}{TEXT_END} is not beside it"
        return [Rejected(f"{source.name}/{name}", reason) for name in pictures]
    return [_with_text(name, texts[0], source) for name in pictures]


def _with_text(name: str, text: str, source: PictureSource) -> Row | Rejected:
    row_id, where = f"{source.name}/{name}", files.inside(source.path, text)
    try:
        with files.SteadyFile(where) as file:
            if file.size > LARGEST_TEXT:
                reason = f"no prompt: {text} has {file.size} bytes; allowed: {LARGEST_TEXT}"
                return Rejected(row_id, reason)
            prompt = decode_text(file.readall())
    except (OSError, ValueError) as error:
        return Rejected(row_id, f"unreadable prompt: {where}: {error}")
    return new_row(row_id, source.name, prompt, files.inside(source.path, name))


def decode_text(data: bytes) -> str:
    """A text file's content without the line end that editors add; bad bytes as surrogates."""
    return data.decode("utf-8-sig", "surrogateescape").rstrip("\r\n")


def _described(name: str, source: PictureSource) -> Row | Rejected:
    row_id = f"{source.name}/{name or posixpath.basename(source.path)}"
    uri = files.inside(source.path, name) if name else source.path
    try:
        with io.BufferedReader(files.SteadyFile(uri), HEADER_BYTES) as picture:
            width, height = probe(picture)
            picture.seek(0)
            found = read_metadata(picture)
    except NoPrompt as error:
        return Rejected(row_id, str(error))
    except (images.BadPicture, OSError, ValueError) as error:
        return unread_picture(row_id, uri, error)
    row = new_row(row_id, source.name, found.prompt, uri, settings=vars(found))
    return sized(row, width, height) if isinstance(row, dict) else row
