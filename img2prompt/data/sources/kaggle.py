"""The layout of Kaggle's "Stable Diffusion - Image to Prompts": `prompts.csv` and `images/`."""

import posixpath
from collections.abc import Callable, Sequence

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources import csv_table, files, listing
from img2prompt.data.sources.tables import Table, table_format

TABLE, PICTURES, ID_COLUMN = "prompts.csv", "images", "imgId"


def picture_uris(source: PictureSource, table: str, names: Sequence[str]) -> Callable[[str], str]:
    """Return a function from an id in the table to the URI of its picture, with any suffix."""
    given = files.absolute(source.pictures) if source.pictures else ""
    folder = given or files.inside(posixpath.dirname(table), PICTURES)
    by_id = {posixpath.splitext(name)[0]: name for name in listing.names(folder)}
    return lambda name: files.inside(folder, by_id.get(name, f"{name}.png"))


FORMAT = table_format(
    "kaggle",
    needs=f"{TABLE} with the columns {ID_COLUMN} and prompt, and {PICTURES}/",
    fits=lambda layout: {TABLE, f"{PICTURES}/"} <= set(layout.top),
    table=Table((TABLE,), csv_table.read_records, (ID_COLUMN,), picture_uris),
    overrides=("csv", "metadata"),
)
