"""Draw Things: JSON in the comment, and beside it a description that looks like AUTOMATIC1111's.

a lighthouse
-fog, people
Steps: 10, Sampler: DDIM, Guidance Scale: 10.0, Seed: 117, Size: 1152x768
"""

import re
from collections.abc import Mapping

from img2prompt.data.sources.metadata.automatic1111 import settings_of
from img2prompt.data.sources.metadata.base import (
    DESCRIPTIONS,
    Metadata,
    NoPrompt,
    Program,
    json_object,
    number,
    string,
    whole,
)

_SETTINGS = re.compile(r"^Steps: *\d+, .*\bGuidance Scale: ", re.MULTILINE)
_NEGATIVE = re.compile(r"^-", re.MULTILINE)


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Return the metadata of the JSON comment, else of the description.

    Raises:
        NoPrompt: an empty prompt, or a description in which several lines may begin the negative.
    """
    record = json_object(texts.get("UserComment", "")) or {}
    if isinstance(record.get("c"), str) and {"uc", "scale", "sampler"} & record.keys():
        return Metadata(
            prompt=record["c"].strip(),
            negative=string(record.get("uc")).strip(),
            generator="drawthings",
            seed=whole(record.get("seed")),
            steps=whole(record.get("steps")),
            cfg=number(record.get("scale")),
            sampler=string(record.get("sampler")),
        )
    for name in DESCRIPTIONS:
        text = texts.get(name, "").replace("\r\n", "\n")
        if settings := _SETTINGS.search(text):
            return _parse(text[: settings.start()], settings_of(text[settings.start() :]))
    return None


PROGRAM = Program("Draw Things", read)


def _parse(text: str, settings: Mapping[str, str]) -> Metadata:
    negatives = list(_NEGATIVE.finditer(text))
    if len(negatives) > 1:
        raise NoPrompt(
            f"undecided prompt: {len(negatives)} lines of Draw Things' description begin with '-', "
            "and each may begin the negative prompt"
        )
    end = negatives[0].start() if negatives else len(text)
    return Metadata(
        prompt=text[:end].strip(),
        negative=text[end + 1 :].strip(),
        generator="drawthings",
        seed=whole(settings.get("Seed")),
        steps=whole(settings.get("Steps")),
        cfg=number(settings.get("Guidance Scale")),
        sampler=settings.get("Sampler", ""),
    )
