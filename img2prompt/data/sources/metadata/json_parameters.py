"""Programs that keep JSON where AUTOMATIC1111 keeps text: Fooocus and SwarmUI."""

from collections.abc import Mapping
from typing import Any

from img2prompt.data.sources.metadata.base import (
    Metadata,
    NoPrompt,
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
            return _metadata(inner, "swarmui", name)
        if isinstance(found.get("prompt"), str) and "negative_prompt" in found:
            return _metadata(found, "fooocus", name)
    return None


def _metadata(found: dict[str, Any], generator: str, name: str) -> Metadata:
    prompt = string(found.get("prompt")).strip()
    if not prompt:
        raise NoPrompt(f"empty prompt: {name!r} of {generator} has no prompt")
    return Metadata(
        prompt=prompt,
        negative=string(found.get("negative_prompt", found.get("negativeprompt"))).strip(),
        generator=generator,
        seed=whole(found.get("seed")),
        steps=whole(found.get("steps")),
        cfg=number(found.get("guidance_scale", found.get("cfgscale"))),
        sampler=string(found.get("sampler")),
    )
