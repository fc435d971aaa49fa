"""Where pictures and their prompts come from."""

from dataclasses import dataclass
from typing import Literal

from img2prompt.config.base import Config, check

AUTO = "auto"
"""Format of a source whose format is to be detected."""


@dataclass(frozen=True, kw_only=True)
class PictureSource(Config):
    """Pictures with their prompts, in a file or folder of one of the known formats."""

    kind: Literal["pictures"] = "pictures"
    path: str
    """Local path or URI of the file (CSV, JSON lines, tar, Parquet, a DiffusionDB part) or of the
    folder that holds such files."""
    format: str = AUTO
    """`auto` detects it from the names of the files. `csv`, `jsonl`: a table of file names and
    prompts. `kaggle`: `images/` and `prompts.csv`. `sidecar`: `a.txt` beside `a.png`. `metadata`:
    pictures that contain their prompt. `webdataset`: tars. `parquet`: pictures and prompts in
    columns. `diffusiondb`: its parts, zipped or not."""
    name: str = "pictures"
    """Source name of rows, and the beginning of their ids. Scores are reported by it."""
    pictures: str = ""
    """Folder that a table's file names are relative to; empty: the folder of the table."""
    file_column: str = ""
    """Column of the file names, or of a Parquet file's pictures; empty: the first that fits of the
    format's usual names."""
    prompt_column: str = ""
    """Column (or JSON key) of the prompts; empty: `prompt`, `caption` or `text`."""

    def __post_init__(self) -> None:
        check(bool(self.path), "path", self.path, "a file, a folder or a URI")
        check(bool(self.name), "name", self.name, "one character or more")


@dataclass(frozen=True, kw_only=True)
class SceneSource(Config):
    """The embedded demo set: drawn scenes, each a pure function of (world, seed, number)."""

    kind: Literal["scenes"] = "scenes"
    name: str = "scenes"
    prompts: int = 2600
    """How many prompts are composed."""
    pictures_per_prompt: int = 2
    """Pictures drawn from each prompt, each with its own placement, noise and format."""
    world: Literal["tower", "demo"] = "demo"
    """Two disjoint worlds: no subject has a colour in one that it has in the other."""
    seed: int = 0
    size: int = 64
    """Width and height in pixels."""

    def __post_init__(self) -> None:
        check(self.prompts >= 1, "prompts", self.prompts, "1 or more")
        check(
            self.pictures_per_prompt >= 1, "pictures_per_prompt", self.pictures_per_prompt, ">= 1"
        )
        check(self.seed >= 0, "seed", self.seed, "0 or more")
        check(32 <= self.size <= 512, "size", self.size, "32 to 512 pixels")
