"""Sources of pictures: one reader a format, all giving the same index rows."""

from collections.abc import Iterator

from img2prompt.artifact import read_bytes
from img2prompt.config import CsvSource, SceneSource
from img2prompt.data.sources import csv_folder, scenes
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.sources.rows import (
    INDEX_SCHEMA,
    REJECTED_SCHEMA,
    Rejected,
    Row,
    count_kinds,
    rejected_table,
    unique_ids,
    unread_picture,
)

__all__ = [
    "INDEX_SCHEMA",
    "REJECTED_SCHEMA",
    "Rejected",
    "Row",
    "count_kinds",
    "list_rows",
    "read_picture",
    "read_pictures",
    "rejected_table",
    "unique_ids",
    "unread_picture",
]


def list_rows(source: CsvSource | SceneSource) -> Iterator[Row | Rejected]:
    """Every picture of a source as a row of INDEX_SCHEMA, or as a rejected row.

    Raises:
        UserError: the source as a whole cannot be read.
    """
    if isinstance(source, CsvSource):
        return csv_folder.list_pictures(source)
    return scenes.list_scenes(source)


def read_picture(uri: str, member: str) -> bytes:
    """The bytes of an index row's picture: a file (`member` is empty) or a drawn scene.

    Raises:
        OSError: the file is gone or cannot be read.
    """
    if uri.startswith(scenes.SCHEME):
        return scenes.read_scene(uri, member)
    assert not member, f"no source writes member {member!r} for {uri}"
    return read_bytes(uri)
