"""A vision tower and its weights."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from img2prompt.config.base import Config, check


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
    beside: tuple[str, ...] = ()
    """Further frozen towers whose features stand beside this one's, for probes: names as in
    `weights`, or `NAME@SIZE` with a side in pixels, which may be the same tower at another side.
    Pictures have the largest side of all (`shard.size`), and are resized for the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        good = all(member.weights not in ("", "fresh") for member in self.members)
        allowed = "NAME or NAME@SIZE of towers with weights, neither of them `fresh`"
        check(good or not self.beside, "tower.beside", self.beside, allowed)

    @property
    def members(self) -> "tuple[TowerConfig, ...]":
        """Configs of the towers side by side, this one first; without `beside` this one alone."""
        others = [replace(self, beside=(), **_named(text)) for text in self.beside]
        return (replace(self, beside=()), *others) if others else (self,)


def _named(text: str) -> dict[str, Any]:
    """Return `weights` and `image_size` of `NAME` or `NAME@SIZE`; a hub name has no `@`."""
    name, _, size = text.rpartition("@")
    if name and size.isdecimal():
        return {"weights": name, "image_size": int(size)}
    return {"weights": text, "image_size": 0}
