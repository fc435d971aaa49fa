"""The drawing of a ComfyUI graph, which the front end stores beside it as `workflow`.

It says which outputs are lists of values, and holds the texts that display nodes wrote in the run.
Nodes inside a sub-graph have the ids of the nodes around them before their own: `30:21`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from img2prompt.data.sources.metadata.base import json_object

_GRID = 6  # LiteGraph's shape of an output, by which ComfyUI marks OUTPUT_IS_LIST
_DEEPEST = 8  # sub-graphs inside each other
_MOST = 20_000  # nodes that are read


class Link(NamedTuple):
    """An output of a node."""

    node: str
    slot: int


@dataclass(frozen=True)
class Workflow:
    """Facts about nodes, by their ids."""

    lists: frozenset[Link]
    """Outputs that return a list of values, one picture from each."""
    shown: Mapping[str, str]
    """Texts that nodes of any class hold in their only widget, outside sub-graphs."""

    @classmethod
    def parse(cls, text: str) -> "Workflow":
        """Parse a `workflow` text; what cannot be read says nothing."""
        drawing = json_object(text) or {}
        definitions = drawing.get("definitions")
        listed = definitions.get("subgraphs") if isinstance(definitions, dict) else None
        subgraphs = {str(graph.get("id")): graph for graph in _dicts(listed)}
        lists: set[Link] = set()
        shown: dict[str, str] = {}
        for count, (path, node) in enumerate(_nodes(drawing, subgraphs, "", _DEEPEST)):
            if count == _MOST:
                break
            outputs = node.get("outputs")
            for slot, output in enumerate(outputs if isinstance(outputs, list) else []):
                if isinstance(output, dict) and output.get("shape") == _GRID:
                    lists.add(Link(path, slot))
            values = {value for value in _strings(node.get("widgets_values")) if value.strip()}
            if ":" not in path and len(values) == 1:
                shown[path] = values.pop()
        return cls(frozenset(lists), shown)


def _nodes(
    graph: Mapping[str, Any], subgraphs: Mapping[str, Mapping[str, Any]], prefix: str, left: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for node in _dicts(graph.get("nodes")):
        path = f"{prefix}{node.get('id')}"
        yield path, node
        inner = subgraphs.get(str(node.get("type")))
        if inner is not None and left:
            yield from _nodes(inner, subgraphs, f"{path}:", left - 1)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings of a list of widgets; a display node's widget may hold a list."""
    for item in value if isinstance(value, list) else []:
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            yield from (text for text in item if isinstance(text, str))
