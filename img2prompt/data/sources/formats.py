"""All formats of picture sources. A new one is one module and one entry here."""

from typing import Any

from img2prompt.config.sources import AUTO, PictureSource, SceneSource
from img2prompt.data.sources import (
    csv_table,
    diffusiondb,
    json_lines,
    kaggle,
    parquet,
    picture_metadata,
    scenes,
    sidecar,
    webdataset,
)
from img2prompt.data.sources.base import Format, Source
from img2prompt.errors import UserError

FORMATS: tuple[Format[PictureSource], ...] = (
    csv_table.FORMAT,
    json_lines.FORMAT,
    kaggle.FORMAT,
    sidecar.FORMAT,
    picture_metadata.FORMAT,
    webdataset.FORMAT,
    parquet.FORMAT,
    diffusiondb.FORMAT,
)


def format_of(source: Source) -> Format[Any]:
    """Return the format that a source names; `auto` has to be resolved before.

    Raises:
        UserError: there is no format of this name; the message lists the allowed ones.
    """
    if isinstance(source, SceneSource):
        return scenes.FORMAT
    assert source.format != AUTO, "resolve() the source first"
    for known in FORMATS:
        if known.name == source.format:
            return known
    allowed = ", ".join([AUTO, *(known.name for known in FORMATS)])
    raise UserError(
        f"format of source {source.name!r} is {source.format!r}; allowed: {allowed} "
        "(--sources.N.format, N: the source's position in the list, from 0)"
    )
