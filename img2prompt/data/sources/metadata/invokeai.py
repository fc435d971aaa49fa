"""InvokeAI: `invokeai_metadata` (3 and later), `sd-metadata` (2), the `Dream` command line (1)."""

import re
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

_DREAM = re.compile(r'\s*"(?P<prompt>.*?)"(?P<flags>(?:\s+-.*)?)\s*', re.DOTALL)
_FLAG = re.compile(r"(?:^|\s)-([sSCA]) ?([^\s-]\S*)")
_NEGATIVE = re.compile(r"\[([^\[\]]*)\]")  # releases 1 and 2 wrote the negative in brackets


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Return the metadata of the newest of the three forms that is present.

    Raises:
        NoPrompt: such a form with an empty prompt.
    """
    if new := json_object(texts.get("invokeai_metadata", "")):
        prompt, negative = new.get("positive_prompt"), string(new.get("negative_prompt"))
        return _metadata(string(prompt), negative, {**new, "sampler": new.get("scheduler")})
    image = (json_object(texts.get("sd-metadata", "")) or {}).get("image")
    if isinstance(image, dict):
        return _metadata(*_split(_joined(image.get("prompt"))), image)
    if (line := texts.get("Dream", "")).strip():
        return _dream(line)
    return None


PROGRAM = Program("InvokeAI", read)


def _metadata(prompt: str, negative: str, settings: Mapping[str, Any]) -> Metadata:
    return Metadata(
        prompt=prompt.strip(),
        negative=negative.strip(),
        generator="invokeai",
        seed=whole(settings.get("seed")),
        steps=whole(settings.get("steps")),
        cfg=number(settings.get("cfg_scale")),
        sampler=string(settings.get("sampler")),
    )


def _joined(prompt: Any) -> str:
    """Join the weighted parts that release 2 lists."""
    if not isinstance(prompt, list):
        return string(prompt)
    parts = [string(part.get("prompt")) for part in prompt if isinstance(part, dict)]
    return ", ".join(part.strip() for part in parts if part.strip())


def _split(prompt: str) -> tuple[str, str]:
    negative = ", ".join(_NEGATIVE.findall(prompt))
    return " ".join(_NEGATIVE.sub(" ", prompt).split()), negative


def _dream(line: str) -> Metadata:
    quoted = _DREAM.fullmatch(line)
    prompt, _, rest = line.partition(" -")
    prompt, flags = (quoted["prompt"], quoted["flags"]) if quoted else (prompt, f" -{rest}")
    values = dict(_FLAG.findall(flags))
    names = {"seed": "S", "steps": "s", "cfg_scale": "C", "sampler": "A"}
    settings = {name: values.get(flag, "") for name, flag in names.items()}
    return _metadata(*_split(prompt), settings)
