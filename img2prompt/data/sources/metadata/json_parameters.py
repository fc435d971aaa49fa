"""Programs that write JSON where AUTOMATIC1111 writes text: Fooocus and SwarmUI."""

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
    """Return the metadata of a JSON object in `parameters` or the EXIF comment.

    Raises:
        NoPrompt: the JSON of such a program with an empty prompt.
    """
    for name in ("parameters", "UserComment"):
        settings = json_object(texts.get(name, "")) or {}
        if isinstance(inner := settings.get("sui_image_params"), dict):
            return _metadata(inner, "swarmui")
        if isinstance(settings.get("prompt"), str) and "negative_prompt" in settings:
            return _metadata(settings, "fooocus")
    return None


PROGRAM = Program("Fooocus, SwarmUI", read)


def _metadata(settings: dict[str, Any], generator: str) -> Metadata:
    return Metadata(
        prompt=string(settings.get("prompt")).strip(),
        negative=string(settings.get("negative_prompt", settings.get("negativeprompt"))).strip(),
        generator=generator,
        seed=whole(settings.get("seed")),
        steps=whole(settings.get("steps")),
        cfg=number(settings.get("guidance_scale", settings.get("cfgscale"))),
        sampler=string(settings.get("sampler")),
    )
