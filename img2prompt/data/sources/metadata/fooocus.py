"""Fooocus and its forks: JSON in `parameters`, the EXIF comment or (Fooocus-MRE) `Comment`."""

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
    """Return the metadata of a JSON object that names Fooocus, or that has its keys.

    Raises:
        NoPrompt: the JSON of such a program with an empty prompt.
    """
    for name in ("parameters", "UserComment", "Comment"):
        # RuinedFooocus writes `Prompt` and `Negative`, the others lower case.
        record = json_object(texts.get(name, "")) or {}
        settings = {key.lower(): value for key, value in record.items()}
        software = string(settings.get("software")).lower()
        own = isinstance(settings.get("prompt"), str) and "negative_prompt" in settings
        if own or "fooocus" in software:
            return _metadata(settings, "ruinedfooocus" if "ruined" in software else "fooocus")
    return None


PROGRAM = Program("Fooocus", read)


def _metadata(settings: dict[str, Any], generator: str) -> Metadata:
    return Metadata(
        prompt=string(settings.get("prompt")).strip(),
        negative=string(settings.get("negative_prompt", settings.get("negative"))).strip(),
        generator=generator,
        seed=whole(settings.get("seed")),
        steps=whole(settings.get("steps")),
        cfg=number(settings.get("guidance_scale", settings.get("cfg"))),
        sampler=string(settings.get("sampler", settings.get("sampler_name"))),
    )
