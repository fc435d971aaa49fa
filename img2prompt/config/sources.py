"""Where pictures and their prompts come from."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from img2prompt.config.base import Config
from img2prompt.config.ranges import NonNegativeInt, PositiveInt

AUTO = "auto"
"""Format of a source whose format is to be detected."""


@dataclass(frozen=True, kw_only=True)
class PictureSource(Config):
    """Pictures with their prompts, in a file or folder of one of the known formats."""

    kind: Literal["pictures"] = "pictures"
    path: Annotated[str, Field(min_length=1, description="a file, a folder or a URI")]
    """Local path or URI of the file (CSV, JSON lines, tar, Parquet, a DiffusionDB part) or of the
    folder that holds such files."""
    format: str = AUTO
    """`auto` detects it from the names of the files. `csv`, `jsonl`: a table of file names and
    prompts, or one in each folder (train/metadata.csv). `kaggle`: images/ and prompts.csv.
    `sidecar`: a.txt beside a.png. `metadata`: pictures that contain their prompt. `webdataset`:
    tars. `parquet`: pictures and prompts in columns. `diffusiondb`: its parts, zipped or not."""
    name: Annotated[str, Field(min_length=1, description="one character or more")] = "pictures"
    """Source name of rows, and the beginning of their ids. Scores are reported by it."""
    pictures: str = ""
    """Folder that a table's file names are relative to; empty: the folder of the table, or the one
    folder beside the table that contains them."""
    file_column: str = ""
    """Column of the file names, or of a Parquet file's pictures; empty: the first that fits of the
    format's usual names."""
    prompt_column: str = ""
    """Column (or JSON key) of the prompts; empty: `prompt`, `caption` or `text`."""
    captions: Literal["first", "drawn"] = "first"
    """Caption of a picture that has several, as a list or in several rows of a table: the first, or
    one drawn for each picture."""
    captions_seed: NonNegativeInt = 0
    """Seed of drawn captions."""


@dataclass(frozen=True, kw_only=True)
class SceneSource(Config):
    """The embedded demo set: drawn scenes, each a pure function of (world, seed, number)."""

    kind: Literal["scenes"] = "scenes"
    name: str = "scenes"
    prompts: PositiveInt = 2600
    """How many prompts are composed."""
    pictures_per_prompt: PositiveInt = 2
    """Pictures drawn from each prompt, each with its own placement, noise and format."""
    world: Literal["tower", "demo"] = "demo"
    """Two disjoint worlds: no subject has a colour in one that it has in the other."""
    seed: NonNegativeInt = 0
    size: Annotated[int, Field(ge=32, le=512, description="32 to 512 pixels")] = 64
    """Width and height in pixels."""
