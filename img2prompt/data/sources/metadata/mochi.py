"""Mochi Diffusion: one line in the description.

Include in Image: a cat; Exclude from Image: blurry; Model: x; Steps: 50; Guidance Scale: 4.0; ...
"""

import re
from collections.abc import Mapping

from img2prompt.data.sources.metadata.base import DESCRIPTIONS, Metadata, Program, number, whole

_LINE = re.compile(
    r"\s*Include in Image: *(?P<prompt>.*?)"
    r"(?:; *Exclude from Image: *(?P<negative>.*?))?"
    r"(?P<settings>; *(?:Date|Model|Size|Steps|Guidance Scale|Seed|Scheduler|Generator): .*)?",
    re.DOTALL,
)


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Return the metadata of a description in Mochi Diffusion's form.

    Raises:
        NoPrompt: the description says nothing of what to include.
    """
    for name in DESCRIPTIONS:
        if line := _LINE.fullmatch(texts.get(name, "")):
            return _parse(line)
    return None


PROGRAM = Program("Mochi Diffusion", read)


def _parse(line: re.Match[str]) -> Metadata:
    pairs = (part.partition(": ") for part in (line["settings"] or "").split(";"))
    settings = {name.strip(): value.strip() for name, _, value in pairs}
    return Metadata(
        prompt=line["prompt"].strip(),
        negative=(line["negative"] or "").strip(),
        generator="mochi",
        seed=whole(settings.get("Seed")),
        steps=whole(settings.get("Steps")),
        cfg=number(settings.get("Guidance Scale")),
        sampler=settings.get("Scheduler", ""),
    )
