"""Parquet files in the Hugging Face image layout: a column of pictures and one of prompts.

Pictures are a struct with the field `bytes` (and `path`, for pictures beside the file), or
plain bytes; a column that is named may hold the paths alone. Headers of pictures in the table are
read in the same pass, unless it has `width` and `height`.
"""

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa

from img2prompt.config.sources import PictureSource
from img2prompt.data import images
from img2prompt.data.sources import diffusiondb, files
from img2prompt.data.sources.base import Format, Layout
from img2prompt.data.sources.captions import choose_caption, one_row_a_picture
from img2prompt.data.sources.containers import DAMAGES, Parquet, picture_bytes
from img2prompt.data.sources.folder import PICTURE_ENDS, file_names
from img2prompt.data.sources.left_out import LeftOut, with_left_out
from img2prompt.data.sources.listing import is_system_file
from img2prompt.data.sources.metadata.base import whole
from img2prompt.data.sources.prefetch import with_sizes
from img2prompt.data.sources.rows import (
    FILE_COLUMNS,
    PROMPT_COLUMNS,
    SETTINGS,
    Rejected,
    Row,
    new_row,
    sized,
    unread_picture,
)

_ROWS_AT_ONCE = 16
_SIZES = ("width", "height")


def portions(source: PictureSource) -> Iterator[list[Any]]:
    """Yield the names of the Parquet files, one by one; empty when the path is one."""
    left_out = LeftOut(source.name, ".parquet, and the pictures that it names")
    first = ""
    for name in file_names(source.path, _is_read, left_out):
        first = first or name
        yield [name]
    if first and _may_name_pictures(files.inside(source.path, first), source):
        left_out.forget(PICTURE_ENDS)
    yield from with_left_out([], left_out)


def list_rows(source: PictureSource, names: Iterable[str]) -> Iterator[Row | Rejected]:
    """Yield index rows of the files, in the order of their rows."""
    return with_sizes(chain.from_iterable(_rows(name, source) for name in names))


def _rows(name: str, source: PictureSource) -> Iterator[Row | Rejected]:
    """Yield the rows of a file; of those that name one picture only one."""
    uri = files.inside(source.path, name) if name else source.path
    read = partial(_file_rows, name, source)
    return one_row_a_picture(read, source) if _only_names_pictures(uri, source) else read()


def _fits(layout: Layout) -> bool:
    # img2dataset writes a table of what it did beside each tar.
    tars = layout.stems(".tar")
    names = [name for name in layout.ending(".parquet") if name.rpartition(".")[0] not in tars]
    if any(name.rpartition("/")[2] not in diffusiondb.TABLES for name in names):
        return True
    # DiffusionDB's tables have the names of Hugging Face's, which stand beside their pictures.
    pictures = layout.ending(*PICTURE_ENDS)
    return bool(names and pictures) and not diffusiondb.FORMAT.fits(layout)


FORMAT = Format(
    "parquet",
    ".parquet files with a column of pictures and one of prompts",
    _fits,
    portions,
    list_rows,
)


def _picture_types(uri: str, source: PictureSource) -> list[pa.DataType]:
    """Return the type of the column of pictures; none for a table that cannot be read."""
    try:
        with closing(Parquet(uri)) as opened:
            schema = opened.table.schema_arrow
    except (OSError, ValueError, *DAMAGES):
        return []
    name = source.file_column or _picture_column(schema)
    return [field.type for field in schema if field.name == name]


def _may_name_pictures(uri: str, source: PictureSource) -> bool:
    return any(_holds_paths(kind) for kind in _picture_types(uri, source))


def _only_names_pictures(uri: str, source: PictureSource) -> bool:
    kinds = _picture_types(uri, source)
    return any(_holds_paths(kind) and not _holds_bytes(kind) for kind in kinds)


def _is_read(name: str) -> bool:
    return name.endswith(".parquet") and not is_system_file(name)


def _file_rows(name: str, source: PictureSource) -> Iterator[Row | Rejected]:
    uri = files.inside(source.path, name) if name else source.path
    base = f"{source.name}/{name or uri.rpartition('/')[2]}"
    try:
        with closing(Parquet(uri)) as opened:
            schema = opened.table.schema_arrow
            picture = source.file_column or _picture_column(schema)
            prompt = source.prompt_column or _prompt_column(schema)
            if prompt not in schema.names or not _holds_pictures(schema, picture):
                yield Rejected(base, _lacking(uri, schema))
                return
            columns = _Columns(uri, base, source, picture, prompt, schema)
            for group in range(opened.table.num_row_groups):
                yield from columns.group_rows(opened, group)
    except (OSError, ValueError, *DAMAGES) as error:
        yield Rejected(base, f"unreadable Parquet: {uri}: {error}")


def _picture_column(schema: pa.Schema) -> str:
    """Return the first column that can hold pictures, else one of file names, or an empty name."""
    inside = (field.name for field in schema if _holds_bytes(field.type))
    named = (
        name
        for name in FILE_COLUMNS
        if name in schema.names and _holds_paths(schema.field(name).type)
    )
    return next(inside, "") or next(named, "")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _holds_paths(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("path") >= 0 and _holds_paths(kind.field("path").type)
    if pa.types.is_dictionary(kind):
        return _holds_paths(kind.value_type)
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _holds_pictures(schema: pa.Schema, name: str) -> bool:
    kinds = [field.type for field in schema if field.name == name]
    return any(_holds_bytes(kind) or _holds_paths(kind) for kind in kinds)


def _prompt_column(schema: pa.Schema) -> str:
    return next((name for name in PROMPT_COLUMNS if name in schema.names), "")


def _lacking(uri: str, schema: pa.Schema) -> str:
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)[:500]
    return (
        f"no picture: {uri} has the columns {columns}; needed: one of pictures (bytes, or a struct "
        "with bytes; a named one may hold paths) and one of prompts (--sources.N.file_column and "
        "--sources.N.prompt_column)"
    )


class _Columns:
    """The columns of a file, from which its rows become index rows."""

    def __init__(
        self,
        uri: str,
        base: str,
        source: PictureSource,
        picture: str,
        prompt: str,
        schema: pa.Schema,
    ) -> None:
        self.uri, self.base, self.source = uri, base, source
        self.picture, self.prompt = picture, prompt
        sizes = _SIZES if set(_SIZES) <= set(schema.names) else ()
        settings = [name for name in SETTINGS if name in schema.names]
        self.texts = [*dict.fromkeys([prompt, *settings, *sizes])]
        # With size columns the pictures need not be read.
        inside = _holds_bytes(schema.field(picture).type)
        self.columns = self.texts if sizes and inside else [*self.texts, picture]

    def group_rows(self, opened: Parquet, group: int) -> Iterator[Row | Rejected]:
        """Yield the rows of a row group; those after damage in it are one rejected row."""
        number = 0
        try:
            for batch in opened.table.iter_batches(_ROWS_AT_ONCE, [group], self.columns):
                pictures = (
                    batch.column(self.picture) if len(self.columns) > len(self.texts) else None
                )
                for at, cells in enumerate(batch.select(self.texts).to_pylist()):
                    yield self._row(cells, group, number, pictures[at] if pictures else None)
                    number += 1
        except (OSError, *DAMAGES) as error:
            rows = opened.table.metadata.row_group(group).num_rows
            reason = f"damaged Parquet: {self.uri}: row group {group}, rows {number} to {rows - 1}"
            yield Rejected(f"{self.base}/{group}", f"{reason}: {error}; copy or download it again")

    def _row(
        self, cells: Mapping[str, Any], group: int, number: int, picture: pa.Scalar | None
    ) -> Row | Rejected:
        row_id, member = f"{self.base}/{group}/{number}", f"{group}/{number}/{self.picture}"
        prompt = choose_caption(cells[self.prompt], self.source, row_id)
        size = tuple(whole(cells.get(name)) or 0 for name in _SIZES)
        if picture is None:
            row = new_row(row_id, self.source.name, prompt, self.uri, member, settings=cells)
            return sized(row, *size) if isinstance(row, dict) and all(size) else row
        data = picture_bytes(picture)
        if data is None:
            return self._row_of_path(row_id, picture, prompt, cells)
        row = new_row(row_id, self.source.name, prompt, self.uri, member, settings=cells)
        try:
            return sized(row, *images.probe(data)) if isinstance(row, dict) else row
        except images.BadPicture as error:
            return unread_picture(row_id, f"{self.uri} {member}", error)

    def _row_of_path(
        self, row_id: str, picture: pa.Scalar, prompt: Any, cells: Mapping[str, Any]
    ) -> Row | Rejected:
        """Return the row of a picture that is given as a path."""
        value = picture.as_py()
        path = value.get("path") if isinstance(value, dict) else value
        if not path:
            return Rejected(row_id, f"no picture: column {self.picture!r} is empty")
        folder = self.source.pictures and files.absolute(self.source.pictures)
        uri = files.inside(folder or posixpath.dirname(self.uri), path)
        return new_row(row_id, self.source.name, prompt, uri, settings=cells)
