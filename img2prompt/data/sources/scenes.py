"""The embedded demo set as a source: pictures are drawn when they are read."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from img2prompt.config import SceneSource
from img2prompt.data.scenes import compose, draw
from img2prompt.data.scenes.compose import World

SCHEME = "scenes:"


def list_scenes(source: SceneSource) -> Iterator[dict[str, Any]]:
    """Index rows; `uri` names world, seed and size, `member` the scene and its copy."""
    uri = f"{SCHEME}{source.world}/{source.seed}/{source.size}"
    for number in range(source.prompts):
        prompt = compose(source.world, source.seed, number).prompt
        for copy in range(source.pictures_per_prompt):
            yield {
                "id": f"{source.name}/{number:06d}-{copy}",
                "source": source.name,
                "prompt": prompt,
                "uri": uri,
                "member": f"{number}/{copy}",
                "width": source.size,
                "height": source.size,
                "generator": f"scenes-{source.world}",
                "seed": source.seed,
            }


def read_scene(uri: str, member: str) -> bytes:
    """Draw the picture of an index row: file bytes in PNG, JPEG or WebP."""
    world, seed, size = uri.removeprefix(SCHEME).split("/")
    number, copy = (int(part) for part in member.split("/"))
    scene = compose(cast(World, world), int(seed), number)
    rng = np.random.default_rng([int(seed), number, copy])
    return draw(scene, rng, int(size))[0]
