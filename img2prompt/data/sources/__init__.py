"""Sources of pictures: one reader a format, all giving the same index rows.

Nothing is unpacked and no picture copied: a row says where its picture lies, and `read_pictures`
reads it there. All formats work on any pyarrow filesystem.
"""

from collections.abc import Callable, Iterator

from img2prompt.config import PictureSource, SceneSource
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
    rejected_table,
    unread_picture,
)
from img2prompt.data.sources.unique import unique_ids
from img2prompt.errors import UserError

__all__ = [
    "INDEX_SCHEMA",
    "REJECTED_SCHEMA",
    "Rejected",
    "Row",
    "count_kinds",
    "identity",
    "list_rows",
    "read_pictures",
    "rejected_table",
    "resolve",
    "unique_ids",
    "unread_picture",
]

_READERS: dict[str, Callable[[PictureSource], Iterator[Row | Rejected]]] = {
    "csv": tables.list_pictures,
    "jsonl": tables.list_pictures,
    "kaggle": tables.list_pictures,
    "sidecar": folder.list_sidecars,
    "metadata": folder.list_metadata,
    "webdataset": webdataset.list_samples,
    "parquet": parquet.list_rows,
    "diffusiondb": diffusiondb.list_rows,
}
_TABLES = ("csv", "jsonl", "kaggle")


def list_rows(source: PictureSource | SceneSource) -> Iterator[Row | Rejected]:
    """Every picture of a source as a row of INDEX_SCHEMA, or as a rejected row.

    Raises:
        UserError: the source as a whole cannot be read.
    """
    if isinstance(source, SceneSource):
        return scenes.list_scenes(source)
    resolved = resolve(source)
    return _READERS[resolved.format](resolved)


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
