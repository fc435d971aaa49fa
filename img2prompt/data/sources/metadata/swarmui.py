"""SwarmUI: JSON in `parameters` or in the EXIF comment."""

from collections.abc import Mapping

from img2prompt.data.sources.metadata.base import (
    Metadata,
    Program,
    json_object,
    number,
    string,
    whole,
)


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Return the metadata of a JSON object with `sui_image_params`.

    Raises:
        NoPrompt: such an object with an empty prompt.
    """
    for name in ("parameters", "UserComment"):
        settings = (json_object(texts.get(name, "")) or {}).get("sui_image_params")
        if isinstance(settings, dict):
            return Metadata(
                prompt=string(settings.get("prompt")).strip(),
                negative=string(settings.get("negativeprompt")).strip(),
                generator="swarmui",
                seed=whole(settings.get("seed")),
                steps=whole(settings.get("steps")),
                cfg=number(settings.get("cfgscale")),
                sampler=string(settings.get("sampler")),
            )
    return None


PROGRAM = Program("SwarmUI", read)
