"""Folders of pictures that contain their prompt, written by the program that made them."""

import io
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

from img2prompt.config.sources import PictureSource
from img2prompt.data import images
from img2prompt.data.sources import files
from img2prompt.data.sources.base import Format, Layout
from img2prompt.data.sources.containers import HEADER_BYTES
from img2prompt.data.sources.folder import PICTURE_ENDS, file_names, is_picture
from img2prompt.data.sources.left_out import LeftOut, with_left_out
from img2prompt.data.sources.metadata.base import NoPrompt
from img2prompt.data.sources.metadata.programs import PROGRAMS, read_metadata
from img2prompt.data.sources.portions import PORTION, in_portions
from img2prompt.data.sources.prefetch import in_order, probe
from img2prompt.data.sources.rows import Rejected, Row, new_row, sized, unread_picture
from img2prompt.data.sources.table_files import is_metadata


def portions(source: PictureSource) -> Iterator[list[Any]]:
    """Yield the names of pictures in all folders of the path; empty when the path is a picture."""
    left_out = LeftOut(source.name, "pictures")
    names = file_names(source.path, is_picture, left_out)
    return with_left_out(in_portions(names, PORTION), left_out)


def list_rows(source: PictureSource, names: Iterable[str]) -> Iterator[Row | Rejected]:
    """Yield index rows of pictures, by the prompt and settings in their metadata."""
    return in_order(lambda name: _row(name, source), names)


def _fits(layout: Layout) -> bool:
    has_table = any(map(is_metadata, layout.ending(".parquet")))
    return bool(layout.ending(*PICTURE_ENDS)) and not has_table


FORMAT = Format(
    "metadata",
    needs=f"pictures that contain their prompt ({', '.join(p.name for p in PROGRAMS)})",
    fits=_fits,
    portions=portions,
    list_rows=list_rows,
)


def _row(name: str, source: PictureSource) -> Row | Rejected:
    row_id = f"{source.name}/{name or posixpath.basename(source.path)}"
    uri = files.inside(source.path, name) if name else source.path
    try:
        with io.BufferedReader(files.SteadyFile(uri), HEADER_BYTES) as picture:
            width, height = probe(picture)
            picture.seek(0)
            metadata = read_metadata(picture)
    except NoPrompt as error:
        return Rejected(row_id, str(error))
    except (images.BadPicture, OSError, ValueError) as error:
        return unread_picture(row_id, uri, error)
    row = new_row(row_id, source.name, metadata.prompt, uri, settings=vars(metadata))
    return sized(row, width, height) if isinstance(row, dict) else row
