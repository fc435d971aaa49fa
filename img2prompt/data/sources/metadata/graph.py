"""A ComfyUI graph in the form of its API.

    {"6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}}, ...}

An input is a value or a link `[node id, output slot]`.
"""

from collections.abc import Mapping
from typing import Any

from img2prompt.data.sources.metadata.base import json_object
from img2prompt.data.sources.metadata.workflow import Link, Workflow

Inputs = Mapping[str, Any]

_SAMPLER = frozenset(("seed", "noise_seed", "noise", "sampler", "sampler_name"))
_LATENT = ("latent_image", "latent", "samples", "optional_latent")


def link_of(value: Any) -> Link | None:
    """Return the link that an input holds, or None for a plain value."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
        return Link(str(value[0]), value[1]) if isinstance(value[0], str | int) else None
    return None


class Graph:
    """Nodes by id, and what the drawing of the graph says of them."""

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]], workflow: Workflow) -> None:
        self.nodes = nodes
        self.workflow = workflow

    @classmethod
    def parse(cls, prompt: str, workflow: str) -> "Graph | None":
        """Parse the `prompt` and `workflow` texts; None when the former is not a graph."""
        entries = json_object(prompt) or {}
        nodes = {
            str(name): node
            for name, node in entries.items()
            if isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs"), dict)
        }
        return cls(nodes, Workflow.parse(workflow)) if nodes else None

    def inputs(self, node: str) -> Inputs:
        """Return a node's inputs; none when the graph lacks the node."""
        return self.nodes[node]["inputs"] if node in self.nodes else {}

    def links(self, node: str) -> dict[str, Link]:
        """Return a node's linked inputs, by name."""
        linked = {name: link_of(value) for name, value in self.inputs(node).items()}
        return {name: link for name, link in linked.items() if link}

    def class_of(self, node: str) -> str:
        """Return a node's class."""
        return self.nodes[node]["class_type"]

    def label(self, node: str) -> str:
        """Return a node's id and class, for messages."""
        return f"node {node} ({self.class_of(node)})"

    def is_sampler(self, node: str) -> bool:
        """Return whether a node turns a latent into another one, guided by conditionings."""
        inputs = self.inputs(node)
        return (
            ("positive" in inputs or "guider" in inputs)
            and not _SAMPLER.isdisjoint(inputs)
            and self.latent(node) is not None
        )

    def latent(self, node: str) -> Link | None:
        """Return the link of the latent that a sampler starts from."""
        links = self.links(node)
        return next((links[name] for name in _LATENT if name in links), None)
