"""Programs that keep JSON where AUTOMATIC1111 keeps text: Fooocus and SwarmUI."""

from collections.abc import Mapping
from typing import Any

from img2prompt.data.sources.metadata.base import (
    Metadata,
    Program,
    json_object,
    number,
    string,
    whole,
)


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Metadata of a JSON object in `parameters` or the EXIF comment.

    Raises:
        NoPrompt: the JSON of such a program with an empty prompt.
    """
    for name in ("parameters", "UserComment"):
        found = json_object(texts.get(name, "")) or {}
        if isinstance(inner := found.get("sui_image_params"), dict):
            return _metadata(inner, "swarmui")
        if isinstance(found.get("prompt"), str) and "negative_prompt" in found:
            return _metadata(found, "fooocus")
    return None


PROGRAM = Program("Fooocus, SwarmUI", read)


def _metadata(found: dict[str, Any], generator: str) -> Metadata:
    return Metadata(
        prompt=string(found.get("prompt")).strip(),
        negative=string(found.get("negative_prompt", found.get("negativeprompt"))).strip(),
        generator=generator,
        seed=whole(found.get("seed")),
        steps=whole(found.get("steps")),
        cfg=number(found.get("guidance_scale", found.get("cfgscale"))),
        sampler=string(found.get("sampler")),
    )
