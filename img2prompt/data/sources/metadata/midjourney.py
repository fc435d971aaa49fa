"""Midjourney: the command of a job in the description.

a red fox in snow --ar 16:9 --v 6.1 --no people Job ID: 0f7c1a3e-...
"""

import re
from collections.abc import Mapping

from img2prompt.data.sources.metadata.base import DESCRIPTIONS, Metadata, Program, whole

_JOB = re.compile(r"Job ID:\s?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NAMES = (
    r"(?:ar|aspect|v|version|niji|stylize|s|style|chaos|c|weird|w|quality|q|seed|stop|tile|iw|cref"
    r"|cw|sref|sw|sv|oref|ow|no|raw|draft|turbo|fast|relax|profile|p|repeat|exp|hd|uplight|upbeta"
    r"|test|testp|creative|video|personalize)(?=\s|$)"
)
_KNOWN = re.compile(rf"\s(?:--|\u2014|\u2013){_NAMES}")  # phones turn two hyphens into a dash
_OPTION = re.compile(rf"\s(?:--(?=[a-z])|[\u2014\u2013](?={_NAMES}))")
_PICTURES = re.compile(r"(?:\s*<?https?://\S+)+\s*")  # addresses of image prompts come first


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Return the metadata of a description with a job id or with Midjourney's options.

    Raises:
        NoPrompt: a job without text, which had only pictures as its prompt.
    """
    for name in DESCRIPTIONS:
        text = texts.get(name, "")
        if (job := _JOB.search(text)) or _KNOWN.search(text):
            return _parse(text[: job.start()] if job else text)
    return None


PROGRAM = Program("Midjourney", read)


def _parse(command: str) -> Metadata:
    prompt, *options = _OPTION.split(f" {command}")
    values: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition(" ")
        values.setdefault(name, value.strip())
    if pictures := _PICTURES.match(prompt):
        prompt = prompt[pictures.end() :]
    return Metadata(
        prompt=prompt.strip(),
        negative=values.get("no", ""),
        generator="midjourney",
        seed=whole(values.get("seed")),
    )
