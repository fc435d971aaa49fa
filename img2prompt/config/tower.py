"""A vision tower and its weights."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from img2prompt.config.base import Config


@dataclass(frozen=True, kw_only=True)
class TowerConfig(Config):
    """Which vision tower, at which resolution."""

    section = "tower"

    weights: str = "demo"
    """`demo` (inside this package), `efficientnet-lite2` (ImageNet features, in a package of its
    own), a checkpoint folder, a hub name found in the local cache, or `fresh`: the demo tower's
    shape with random weights."""
    image_size: Annotated[int, Field(ge=0, description="0 or a multiple of the patch")] = 0
    """Side in pixels; 0: the checkpoint's own. A convolutional tower takes any side from 32."""
    resize_positions: bool = False
    """Interpolate the position embeddings when `image_size` is not the checkpoint's own."""
    download: bool = False
    """Let a hub name be fetched from the hub when it is not in the local cache."""
