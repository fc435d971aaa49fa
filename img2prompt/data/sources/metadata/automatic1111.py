"""AUTOMATIC1111's `parameters`, also written by its forks, by Civitai and by savers for ComfyUI.

a cat,
on grass
Negative prompt: ugly
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Lora hashes: "a: 0f, b: 1e", Size: 512x512
"""

import json
import re
from collections.abc import Mapping

from img2prompt.data.sources.metadata.base import (
    TEMPLATE,
    Metadata,
    NoPrompt,
    Program,
    json_object,
    number,
    whole,
)

_SETTINGS = re.compile(r"^Steps: *\d+ *(?:,|$)", re.MULTILINE)
_NEGATIVE = re.compile(r"^Negative prompt:", re.MULTILINE)
_OWN = {"Sampler", "CFG scale", "Seed", "Size", "Model hash"}  # none of which proves it by itself
_SETTING = re.compile(r'([A-Za-z][\w /()-]{0,60}): *("(?:[^"\\]|\\.)*"|[^,]*)(?:, *|$)')
_LONGEST = 20_000  # characters of settings that are read


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Return the metadata of a text with settings, or of `parameters` with a negative prompt.

    The last `Steps:` line begins the settings; the first `Negative prompt:` line the negative.
    Outside `parameters`, a `Steps:` line alone is not enough, because other programs write one.

    Raises:
        NoPrompt: settings without a prompt, or a prompt that is the template of the one used.
    """
    for name in ("parameters", "UserComment", "ImageDescription", "Description"):
        text = texts.get(name, "").replace("\r\n", "\n")
        if json_object(text) is not None:
            continue
        own = name == "parameters"
        if own and (_SETTINGS.search(text) or _NEGATIVE.search(text)):
            return _parse(text)
        settings = {} if own else _split(text)[1]
        if not _OWN.isdisjoint(settings) and "Guidance Scale" not in settings:
            return _parse(text)
    return None


PROGRAM = Program("AUTOMATIC1111", read)


def _split(text: str) -> tuple[str, dict[str, str]]:
    """Return the text before the settings, and the settings."""
    *_, last = [None, *_SETTINGS.finditer(text)]
    return (text[: last.start()], settings_of(text[last.start() :])) if last else (text, {})


def _parse(text: str) -> Metadata:
    before, settings = _split(text)
    if negative := _NEGATIVE.search(before):
        prompt, denied = before[: negative.start()], before[negative.end() :]
    else:
        prompt, denied = before, ""
    if _unquoted(settings.get("Template", "")) == prompt.strip() and TEMPLATE.search(prompt):
        raise NoPrompt(f"computed prompt: the picture holds only a template ({prompt[:60]!r})")
    return Metadata(
        prompt=prompt.strip(),
        negative=denied.strip(),
        generator="automatic1111",
        seed=whole(settings.get("Seed")),
        steps=whole(settings.get("Steps")),
        cfg=number(settings.get("CFG scale")),
        sampler=settings.get("Sampler", ""),
    )


def _unquoted(value: str) -> str:
    """Return a setting's text; values with commas or colons are written as JSON strings."""
    try:
        return str(json.loads(value)).strip()
    except ValueError:
        return value.strip()


def settings_of(text: str) -> dict[str, str]:
    """Return the settings by name, the first of each; quoted values may contain commas."""
    settings: dict[str, str] = {}
    for match in _SETTING.finditer(text[:_LONGEST]):
        settings.setdefault(match[1], match[2].strip())
    return settings
