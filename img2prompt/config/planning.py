"""Which cluster and how many pictures a plan is for."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from img2prompt.config.base import Config
from img2prompt.config.chain import ChainConfig
from img2prompt.config.ranges import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
)

NodeType = Literal["this", "g6.12xlarge", "p4d.24xlarge", "p5.48xlarge", "g2-standard-48"]


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(Config):
    """A chain of stages, planned for numbers of pictures on nodes of one type."""

    chain: ChainConfig
    pictures: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (
        400_000,
        2_000_000,
        14_000_000,
        1_000_000_000,
    )
    """Numbers of pictures; each gets a table."""
    node: NodeType = "this"
    """Type of the nodes; `this`: the machine of this command, without its GPUs."""
    nodes: PositiveInt = 1
    price: NonNegativeFloat = 0.0
    """Money for an hour of one node, in any currency; 0: no money is shown."""
    utilisation: PositiveFraction = 0.35
    """Share of a GPU's peak FLOP/s that features and training are expected to reach. Runs on other
    devices say nothing about it, so it is never taken from them."""
    pictures_per_prompt: PositiveFloat = 7.8
    """Default: DiffusionDB Large has 14 million pictures of 1.8 million prompts."""
    picture_bytes: PositiveInt = 460_000
    """Mean size of a source file. Default: DiffusionDB Large, 6.5 TB in 14 million pictures."""
    tokens: PositiveInt = 32
    """Mean tokens of a prompt."""
    head_memory_gb: PositiveFloat = 64.0
    """Memory of the machine that drives the job; what grows with the rows has to fit."""
