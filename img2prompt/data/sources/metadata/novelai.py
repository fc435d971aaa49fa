"""NovelAI: the prompt in `Description`, the settings as JSON in `Comment`.

WebP files hold all texts as one JSON object in the EXIF comment. Release 4 has a caption for each
character beside the base caption, which is all that `Description` repeats.
"""

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
    """Return the metadata when `Software` or the settings say NovelAI.

    Raises:
        NoPrompt: NovelAI's settings without a prompt.
    """
    packed = json_object(texts.get("UserComment", "")) or {}
    if "Comment" in packed or packed.get("Software") == "NovelAI":
        texts = {name: string(value) for name, value in packed.items()}
    settings = json_object(texts.get("Comment", "")) or {}
    if texts.get("Software", "").strip() != "NovelAI" and not {"uc", "sampler"} <= settings.keys():
        return None
    prompt = texts.get("Description", "").strip() or string(settings.get("prompt")).strip()
    return Metadata(
        prompt=_captions(settings.get("v4_prompt")) or prompt,
        negative=_captions(settings.get("v4_negative_prompt"))
        or string(settings.get("uc")).strip(),
        generator="novelai",
        seed=whole(settings.get("seed")),
        steps=whole(settings.get("steps")),
        cfg=number(settings.get("scale")),
        sampler=string(settings.get("sampler")),
    )


PROGRAM = Program("NovelAI", read)


def _captions(prompt: Any) -> str:
    """Return the base caption and those of the characters, joined by commas; empty without any."""
    caption = prompt.get("caption") if isinstance(prompt, dict) else None
    if not isinstance(caption, dict):
        return ""
    characters = caption.get("char_captions")
    texts = [caption.get("base_caption")]
    for character in characters if isinstance(characters, list) else []:
        texts.append(character.get("char_caption") if isinstance(character, dict) else None)
    stripped = (string(text).strip().rstrip(",") for text in texts)
    return ", ".join(text for text in stripped if text)
