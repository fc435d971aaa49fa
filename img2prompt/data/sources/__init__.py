"""Sources of pictures: one reader a format, all giving the same index rows.

Nothing is unpacked and no picture copied: a row says where its picture lies, and `read_pictures`
reads it there. All formats work on any pyarrow filesystem.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.data.sources import (
    diffusiondb,
    folder,
    listing,
    parquet,
    scenes,
    tables,
    webdataset,
)
from img2prompt.data.sources.detect import resolve
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.sources.rows import (
    INDEX_SCHEMA,
    REJECTED_SCHEMA,
    Rejected,
    Row,
    count_kinds,
    printable,
    rejected_table,
    unread_picture,
)
from img2prompt.data.sources.unique import Ids
from img2prompt.errors import UserError

__all__ = [
    "INDEX_SCHEMA",
    "REJECTED_SCHEMA",
    "Ids",
    "Rejected",
    "Row",
    "Source",
    "count_kinds",
    "identity",
    "list_portion",
    "list_rows",
    "portions",
    "printable",
    "read_pictures",
    "rejected_table",
    "resolve",
    "unread_picture",
]

Source = PictureSource | SceneSource

_TABLES = ("csv", "jsonl", "kaggle")
_Reader = tuple[Callable[[Any], Iterator[Any]], Callable[[Any, Any], Iterator[Row | Rejected]]]
_READERS: dict[str, _Reader] = {
    **dict.fromkeys(_TABLES, (tables.portions, tables.list_pictures)),
    "sidecar": (folder.sidecar_portions, folder.list_sidecars),
    "metadata": (folder.metadata_portions, folder.list_metadata),
    "webdataset": (webdataset.portions, webdataset.list_samples),
    "parquet": (parquet.portions, parquet.list_rows),
    "diffusiondb": (diffusiondb.portions, diffusiondb.list_rows),
    "scenes": (scenes.portions, scenes.list_scenes),
}
"""By format: what there is, in portions, and the rows of a portion."""


def portions(source: Source) -> Iterator[list[Any]]:
    """What a source holds, in order, as lists of names or records that can be listed apart.

    The source was resolved. Pictures are not looked at; of archives only the directories of
    DiffusionDB's zips, where a table of metadata lies beside them.

    Raises:
        UserError: the source as a whole cannot be read.
    """
    return _reader(source)[0](source)


def list_portion(source: Source, portion: Iterable[Any]) -> Iterator[Row | Rejected]:
    """Every picture of a portion as a row of INDEX_SCHEMA, or as a rejected row."""
    return _reader(source)[1](source, portion)


def list_rows(source: Source) -> Iterator[Row | Rejected]:
    """The same for all portions of a source, resolved or not."""
    found = resolve(source) if isinstance(source, PictureSource) else source
    return chain.from_iterable(list_portion(found, portion) for portion in portions(found))


def _reader(source: Source) -> _Reader:
    return _READERS["scenes" if isinstance(source, SceneSource) else source.format]


def identity(source: PictureSource) -> str:
    """16 hex digits that change when what the source tells changes.

    Of a table its content counts, of all else names, sizes and times of the files.

    Raises:
        UserError: the source does not exist or cannot be read.
    """
    resolved = resolve(source)
    try:
        if resolved.format in _TABLES:
            return tables.digest(resolved)
        return listing.digest(resolved.path)
    except OSError as error:
        raise UserError(f"{resolved.path} cannot be read: {error}") from error
