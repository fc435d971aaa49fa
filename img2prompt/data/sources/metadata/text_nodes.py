"""What nodes of a ComfyUI graph do with texts.

Hundreds of packs write, join and show texts, and as many compute others from them: wildcards,
random lines, translators, language models. A node counts as writing a literal text only when its
name is made of words that say so and it has no inputs that say otherwise. The names of the rest
are unknown or tell of computing, and their text is not in the picture.
"""

import re
from typing import Any, Literal

from img2prompt.data.sources.metadata.base import TEMPLATE
from img2prompt.data.sources.metadata.graph import Graph, Inputs, link_of
from img2prompt.data.sources.metadata.lora_manager import trigger_inputs

Role = Literal["literal", "encodes", "joins", "passes", "computes"]

TEXTS = (
    *("text", "prompt", "user_prompt", "t5xxl", "llama", "qwen25_7b", "mt5xl"),
    *("text_g", "clip_g", "text_l", "clip_l", "bert", "string", "value", "positive", "negative"),
)
"""Inputs that hold a prompt. Where a node has several (SDXL, SD3, Flux), the first with a text
counts: the encoder that reads most of it."""
POPULATED = "populated_text"
"""Input in which the front end stores the text that wildcards became in the run."""

DELIMITERS = ("delimiter", "separator")

_ROLES = {"positive", "negative"}  # for a conditioning in most nodes, for a text in a few
_LITERAL = {
    *("text", "textbox", "string", "str", "prompt", "literal", "constant", "primitive"),
    *("multi", "line", "multiline", "box", "input", "field", "editor", "value", "widget", "node"),
    *("simple", "plain", "raw", "user", "positive", "negative", "pos", "neg", "to", "any"),
    # Names of packs.
    *("cr", "df", "easy", "jps", "jw", "kep", "kj", "layer", "ml", "mtb", "n", "o", "s", "sdxl"),
    *("searge", "tt", "utility", "was"),
}
_BESIDE = {"clip", "label", "speak_and_recognation", "speak_and_recognition", "strip_newlines"}
_BESIDE_JOINED = _BESIDE | {"clean_whitespace", "inputcount", "linebreak_addition", "Update inputs"}
_PASSES = {
    *("bus", "console", "context", "debug", "display", "pipe", "preview", "print", "reroute"),
    *("show", "view", "viewer"),
}
_ENCODES = re.compile(r"encode|gligen|power prompt.*\(rgthree\)", re.IGNORECASE)
_SHOWS = re.compile(r"show ?text.*|easy showanything", re.IGNORECASE)
_JOINS = re.compile(r"append|concat|combin|join|merge", re.IGNORECASE)
_JOINS_CONDITIONINGS = re.compile(
    r"add|append|average|blend|combin|concat|guider|interpol|join|lerp|merge|mix|sum", re.IGNORECASE
)
_COMPUTES = re.compile(
    r"batch|caption|combinator|cycl|dynamic|enhanc|expan|file|generat|gemini|gpt|improv|interrogat"
    r"|iterat|\blist|llm|magic|noodle|(?<![a-z])nsp|ollama|parse|random|regex|replac|schedul|styl"
    r"|template|translat|wildcard",
    re.IGNORECASE,
)
_EXPANDS = re.compile(r"\b(?:easy|ttn) .*loader|loramanager", re.IGNORECASE)
_COMPUTING_INPUTS = {"noodle_key", "regex", "regex_pattern", "find", "replace"}
_PART = re.compile(r"(?:text|string|str|prompt|part)_?(?:[a-j]|\d{1,2})")
_PACK = re.compile(r"\|.*$|\([^)]*\)|\[[^]]*\]")
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+")


def role_of(class_type: str, inputs: Inputs) -> Role:
    """Return what a node does with its texts; `computes` for nodes that are not known."""
    words = {word.lower() for word in _WORD.findall(_PACK.sub(" ", class_type))}
    named = [name for name in inputs if name in TEXTS]
    if _COMPUTES.search(class_type) or _COMPUTING_INPUTS & inputs.keys():
        return "computes"
    if _ENCODES.search(class_type) or link_of(inputs.get("clip")):
        return "encodes"
    if parts(inputs) and _joins(class_type, inputs):
        return "joins"
    if words & _PASSES:
        return "passes"
    beside = {*named, *_BESIDE, *trigger_inputs(class_type, inputs)}
    if words <= _LITERAL and len(named) == 1 and inputs.keys() <= beside:
        return "literal"
    return "passes" if words <= _LITERAL and not named and not _strings(inputs) else "computes"


def shows(class_type: str) -> bool:
    """Return whether a node writes the text that it passes on into the drawing of its run."""
    return _SHOWS.fullmatch(class_type.partition("|")[0]) is not None


def computes(class_type: str, text: str) -> bool:
    """Return whether a node makes another text from the one that it holds."""
    if _COMPUTES.search(class_type):
        return True
    return _EXPANDS.search(class_type) is not None and TEMPLATE.search(text) is not None


def joins_conditionings(class_type: str) -> bool:
    """Return whether a node makes one conditioning of all that it receives."""
    return _JOINS_CONDITIONINGS.search(class_type) is not None


def has_text(graph: Graph, node: str) -> bool:
    """Return whether a node has an input for a text, beside those for a conditioning."""
    inputs = graph.inputs(node)
    names = [
        POPULATED,
        *(name for name in TEXTS if name in inputs and name not in _ROLES),
        *parts(inputs),
    ]
    values = [inputs.get(name) for name in names]
    return any(isinstance(value, str) or link_of(value) for value in values)


def parts(inputs: Inputs) -> list[str]:
    """Return the inputs for parts of a text, in the order of the node."""
    return [name for name in inputs if _PART.fullmatch(name)]


def _joins(class_type: str, inputs: Inputs) -> bool:
    own = {*parts(inputs), *DELIMITERS, *_BESIDE_JOINED}
    others = {name: value for name, value in inputs.items() if name not in own}
    named = bool(_JOINS.search(class_type)) or any(name in inputs for name in DELIMITERS)
    return named and not _strings(others)


def _strings(inputs: Inputs | dict[str, Any]) -> list[str]:
    return [value for value in inputs.values() if isinstance(value, str) and value.strip()]
