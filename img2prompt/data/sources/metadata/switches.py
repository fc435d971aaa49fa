"""Nodes of a ComfyUI graph that pass on one of several inputs.

A selector beside numbered inputs makes a node a switch: its texts are alternatives, not parts. The
selector is read where the graph holds its value, and all inputs stay candidates where it does not.
"""

import re
from typing import Any

from img2prompt.data.sources.metadata.graph import Graph, link_of

_SELECTORS = {
    *("bool", "boolean", "boolean_number", "choice", "index", "input", "select", "select_input"),
    *("selected", "selected_index", "selection", "selector", "switch", "which"),
}
_BRANCH = re.compile(
    r"(?:any|cond|conditioning|in|input|item|prompt|str|string|text|value)_?(\d{1,3}|[a-j])",
    re.IGNORECASE,
)
_TRUE = ("on_true", "if_true", "true_input", "true_value", "true", "tt_value")
_FALSE = ("on_false", "if_false", "false_input", "false_value", "false", "ff_value")
_CHOOSES = re.compile(
    r"switch|select|toggle|choose|choice|random|pick|branch|if_?else", re.IGNORECASE
)
_FIRST = re.compile(r"any switch \(rgthree\)", re.IGNORECASE)
_LITERALS = {"true": True, "false": False}
_VALUES = ("value", "int", "number", "Number", "boolean", "boolean_number", "bool", "string")
_FARTHEST = 5  # links between a selector and the node that holds its value


def candidates(graph: Graph, node: str) -> list[str] | None:
    """Return the inputs that a switch may pass on; None when the node is no switch.

    One name: the selector says which. No name: the selected input is not connected. Several names:
    the graph does not say which of them.
    """
    inputs = graph.inputs(node)
    if isinstance(external := inputs.get("use_input_text"), bool):  # PromptStashSaver's
        return [name for name in ("text" if external else "prompt_text",) if name in inputs]
    branches = [name for name in inputs if _BRANCH.fullmatch(name) or name in (*_TRUE, *_FALSE)]
    selectors = [name for name in inputs if name.lower() in _SELECTORS and name not in branches]
    if not branches or not (selectors or _CHOOSES.search(graph.class_of(node))):
        return None
    if _FIRST.fullmatch(graph.class_of(node)):
        return sorted(branches)[:1]  # the front end leaves muted inputs out of the graph
    for name in selectors:
        if (value := _value(graph, inputs[name])) is not None:
            return _selected(name.lower(), value, branches)
    return branches


def _value(graph: Graph, value: Any, left: int = _FARTHEST) -> bool | int | str | None:
    """Return a selector's value, or the one behind its link; None when the graph lacks it."""
    if isinstance(value, bool | int | str):
        return value
    link = link_of(value)
    if link is None or not left:
        return None
    inputs = graph.inputs(link.node)
    holders = [name for name in _VALUES if name in inputs]
    return _value(graph, inputs[holders[0]], left - 1) if len(holders) == 1 else None


def _selected(selector: str, value: bool | int | str, branches: list[str]) -> list[str]:
    """Return the branch that a selector's value names; all when the value may mean several."""
    if value in branches:
        return [str(value)]
    value = _LITERALS.get(value.lower(), value) if isinstance(value, str) else value
    wanted = _TRUE if value else _FALSE
    if any(name in (*_TRUE, *_FALSE) for name in branches):
        return [name for name in branches if name in wanted] if value in (0, 1) else branches
    marks = {name: _mark(name) for name in branches}
    if isinstance(value, bool) or selector.startswith("bool"):
        # WAS' switches pass on A when true and B when false.
        lettered = set(marks.values()) <= {"a", "b"} and value in (0, 1)
        wanted = "a" if value else "b"
        return [name for name in branches if marks[name] == wanted] if lettered else branches
    numbers = {int(mark): name for name, mark in marks.items() if mark.isdigit()}
    unclear = 0 not in numbers and (value == 0 or "index" in selector)
    if len(numbers) < len(branches) or not str(value).isdigit() or unclear:
        return branches
    return [numbers[int(value)]] if int(value) in numbers else []


def _mark(name: str) -> str:
    """Return the number or letter of a branch."""
    branch = _BRANCH.fullmatch(name)
    return branch[1].lower() if branch else ""
