"""Where pictures and their prompts come from."""

from dataclasses import dataclass
from typing import Literal

from img2prompt.config.base import Config, check


@dataclass(frozen=True, kw_only=True)
class CsvSource(Config):
    """Pictures in a folder, listed with their prompts in a CSV file."""

    kind: Literal["csv"] = "csv"
    csv: str
    """The CSV file, with a header line. Needed columns: `file_column` and `prompt_column`."""
    pictures: str = ""
    """Folder that the file names are relative to; empty: the folder of the CSV."""
    name: str = "csv"
    """Source name of rows when the CSV has no `source` column."""
    file_column: str = "file"
    prompt_column: str = "prompt"


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
