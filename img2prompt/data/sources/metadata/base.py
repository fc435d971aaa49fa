"""The seam for programs that write prompts into pictures, and how their values are read."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

DESCRIPTIONS = ("Description", "UserComment", "ImageDescription")
"""Names of texts that describe a picture: a program's record, a prompt or a mere caption."""

TEMPLATE = re.compile(r"\{[^{}|]*\|[^{}]*\}|__[\w/*.-]+__")
"""Alternatives `{a|b}` and wildcards `__animal__`, from which extensions make a prompt."""

_WHOLE = re.compile(r"([+-]?\d{1,20})(?:\.0+)?")


class NoPrompt(ValueError):
    """A picture without a usable prompt; the text is `kind: detail`, for the rejected row."""


@dataclass(frozen=True)
class Metadata:
    """A picture's prompt and settings. Settings that the picture lacks are empty or None.

    Raises:
        NoPrompt: the prompt is blank.
    """

    prompt: str
    """As the program wrote it."""
    negative: str = ""
    generator: str = ""
    """The program, in lower case (`automatic1111`, `comfyui`); empty when it is unknown."""
    seed: int | None = None
    """A signed 64-bit number; None also where the written one is larger."""
    steps: int | None = None
    cfg: float | None = None
    """Guidance scale."""
    sampler: str = ""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise NoPrompt(f"empty prompt: the settings of {self.generator} have no prompt")


@dataclass(frozen=True)
class Program:
    """A program, or programs of one notation."""

    name: str
    """As its users know it, for messages."""
    read: Callable[[Mapping[str, str]], Metadata | None]
    """Return the metadata in a picture's texts by name; None when it wrote none of them.

    Raises NoPrompt when the program wrote them without a usable prompt.
    """


def whole(value: Any) -> int | None:
    """Return a signed 64-bit integer, given as a number or text; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    match = _WHOLE.fullmatch(str(value)[:100].strip())
    exact = int(match[1]) if match else None
    return exact if exact is not None and -(2**63) <= exact < 2**63 else None


def number(value: Any) -> float | None:
    """Return a finite number, given as a number or text; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def json_object(text: str) -> dict[str, Any] | None:
    """Return a JSON object; None for other text (bad JSON, another type, nested too deep)."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def string(value: Any) -> str:
    """Return the value when it is a string, else an empty string."""
    return value if isinstance(value, str) else ""
