"""The embedded demo set as a source: pictures are drawn when they are read."""

from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np

from img2prompt.config.sources import SceneSource
from img2prompt.data.scenes.compose import World, compose
from img2prompt.data.scenes.draw import draw
from img2prompt.data.sources.base import Format
from img2prompt.data.sources.portions import PORTION, in_portions
from img2prompt.data.sources.rows import Rejected, Row, new_row

SCHEME = "scenes:"


def portions(source: SceneSource) -> Iterator[list[int]]:
    """Yield the numbers of the scenes."""
    return in_portions(range(source.prompts), PORTION)


def list_rows(source: SceneSource, numbers: Iterable[int]) -> Iterator[Row | Rejected]:
    """Yield index rows; `uri` names world, seed and size, `member` the scene and its copy."""
    uri = f"{SCHEME}{source.world}/{source.seed}/{source.size}"
    for number in numbers:
        prompt = compose(source.world, source.seed, number).prompt
        for copy in range(source.pictures_per_prompt):
            yield new_row(
                f"{source.name}/{number:06d}-{copy}",
                source.name,
                prompt,
                uri,
                f"{number}/{copy}",
                settings={"generator": f"scenes-{source.world}", "seed": source.seed},
                size=(source.size, source.size),
            )


FORMAT = Format(
    "scenes",
    needs="no files",
    fits=lambda layout: False,
    portions=portions,
    list_rows=list_rows,
    digest=lambda source: "",
)
"""Asked for by a SceneSource, never detected. The config alone identifies its contents."""


def read_scene(uri: str, member: str) -> bytes:
    """Draw the picture of an index row; return it as PNG, JPEG or WebP."""
    world, seed, size = uri.removeprefix(SCHEME).split("/")
    number, copy = (int(part) for part in member.split("/"))
    scene = compose(cast(World, world), int(seed), number)
    rng = np.random.default_rng([int(seed), number, copy])
    return draw(scene, rng, int(size))[0]
