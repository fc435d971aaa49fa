"""Easy Diffusion: a JSON object in the EXIF comment, or one PNG text for each of its keys."""

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

_OWN = {"use_stable_diffusion_model", "num_inference_steps", "stable_diffusion_model"}
"""Keys that no other program writes beside a prompt."""


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Return the metadata of an object, or of texts, with Easy Diffusion's keys.

    Raises:
        NoPrompt: such keys with an empty prompt.
    """
    for record in (json_object(texts.get("UserComment", "")) or {}, texts):
        # Some releases write `Negative Prompt` for `negative_prompt`, as in their text files.
        settings = {key.lower().replace(" ", "_"): value for key, value in record.items()}
        if "prompt" in settings and not _OWN.isdisjoint(settings):
            return _metadata(settings)
    return None


PROGRAM = Program("Easy Diffusion", read)


def _metadata(settings: Mapping[str, Any]) -> Metadata:
    return Metadata(
        prompt=string(settings.get("prompt")).strip(),
        negative=string(settings.get("negative_prompt")).strip(),
        generator="easydiffusion",
        seed=whole(settings.get("seed")),
        steps=whole(settings.get("num_inference_steps", settings.get("steps"))),
        cfg=number(settings.get("guidance_scale")),
        sampler=string(settings.get("sampler_name", settings.get("sampler"))),
    )
