"""NovelAI: the prompt in `Description`, the settings as JSON in `Comment`."""

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
    """Return the metadata when `Software` or the settings say NovelAI.

    Raises:
        NoPrompt: NovelAI's settings without a prompt.
    """
    settings = json_object(texts.get("Comment", "")) or {}
    if texts.get("Software", "").strip() != "NovelAI" and not {"uc", "sampler"} <= settings.keys():
        return None
    prompt = texts.get("Description", "").strip() or string(settings.get("prompt")).strip()
    return Metadata(
        prompt=prompt,
        negative=string(settings.get("uc")).strip(),
        generator="novelai",
        seed=whole(settings.get("seed")),
        steps=whole(settings.get("steps")),
        cfg=number(settings.get("scale")),
        sampler=string(settings.get("sampler")),
    )


PROGRAM = Program("NovelAI", read)
