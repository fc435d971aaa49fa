"""List the pictures of a source as index rows, whatever its format.

Nothing is unpacked and no picture is copied: a row says where its picture is stored, and
`reader.read_pictures` reads it from there. All formats work on any pyarrow filesystem.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources.base import Source
from img2prompt.data.sources.detect import resolve
from img2prompt.data.sources.formats import format_of
from img2prompt.data.sources.rows import Rejected, Row
from img2prompt.errors import UserError


def portions(source: Source) -> Iterator[list[Any]]:
    """Yield the contents of a resolved source, in order, in lists that can be listed independently.

    Pictures are not opened. Of archives only the directories of DiffusionDB's zips are read, where
    a table of metadata is beside them.

    Raises:
        UserError: the source as a whole cannot be read.
    """
    return format_of(source).portions(source)


def list_portion(source: Source, portion: Sequence[Any]) -> Iterator[Row | Rejected]:
    """Yield each picture of a portion as a row of INDEX_SCHEMA or as a rejected row."""
    if all(isinstance(item, Rejected) for item in portion):  # files that the source left out
        return iter(portion)
    return format_of(source).list_rows(source, portion)


def list_rows(source: Source) -> Iterator[Row | Rejected]:
    """Yield the rows of all portions of a source, which need not be resolved."""
    resolved = resolve(source) if isinstance(source, PictureSource) else source
    return chain.from_iterable(list_portion(resolved, part) for part in portions(resolved))


def identity(source: PictureSource) -> str:
    """Return 16 hex digits that change when the source changes.

    They follow the content of a table; for other formats the names, sizes and times of the files.

    Raises:
        UserError: the source does not exist or cannot be read.
    """
    resolved = resolve(source)
    try:
        return format_of(resolved).digest(resolved)
    except OSError as error:
        raise UserError(f"{resolved.path} cannot be read: {error}") from error
