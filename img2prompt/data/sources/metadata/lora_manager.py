"""ComfyUI's LoRA Manager: nodes that put the trigger words of LoRAs before the prompt."""

import json
from typing import Any

from img2prompt.data.sources.metadata.base import number, string
from img2prompt.data.sources.metadata.graph import Inputs

_TOGGLES = "toggle_trigger_words"
_MESSAGES = ("orinalMessage", "originalMessage")  # the first is the pack's own spelling


def trigger_inputs(class_type: str, inputs: Inputs) -> list[str]:
    """Return the inputs of a prompt node whose texts come before its own."""
    own = "(LoraManager)" in class_type
    return [name for name in inputs if own and name.startswith("trigger_words")]


def toggled_words(class_type: str, inputs: Inputs) -> str | None:
    """Return the trigger words that a toggle node passes on; None for another node.

    A toggle without words passes on the message that it received. None also where the graph does
    not say which words are active.
    """
    if "(LoraManager)" not in class_type or _TOGGLES not in inputs:
        return None
    words = _unwrapped(inputs[_TOGGLES])
    if not words:
        messages = [inputs[name] for name in _MESSAGES if isinstance(inputs.get(name), str)]
        return messages[0] if messages and words == [] else None
    if not all(isinstance(word, dict) and "items" not in word for word in words):
        return None
    weighted = inputs.get("allow_strength_adjustment") is True
    active = [_written(word, weighted) for word in words if word.get("active")]
    return ", ".join(word for word in active if word)


def _unwrapped(value: Any) -> list[Any] | None:
    """Return the list of words, which some releases wrap in an object or write as JSON."""
    if isinstance(value, dict):
        value = value.get("__value__")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _written(word: dict[str, Any], weighted: bool) -> str:
    text, strength = string(word.get("text")).strip(), number(word.get("strength"))
    return f"({text}:{strength:.2f})" if weighted and strength is not None else text
