"""Follow a ComfyUI graph from a sampler back to the text of its prompt.

Links between conditionings are followed by the names of inputs, which hundreds of node packs share:
those of ComfyUI's own `nodes.py` and `comfy_extras/`, and of the packs that most pictures on the
web use. A text counts only where its node is known to hold or to join it (`text_nodes`).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NoReturn

from img2prompt.data.sources.metadata.base import NoPrompt
from img2prompt.data.sources.metadata.graph import Graph, Inputs, link_of
from img2prompt.data.sources.metadata.lora_manager import toggled_words, trigger_inputs
from img2prompt.data.sources.metadata.switches import candidates
from img2prompt.data.sources.metadata.text_nodes import (
    DELIMITERS,
    POPULATED,
    TEXTS,
    computes,
    has_text,
    joins_conditionings,
    parts,
    role_of,
    shows,
)
from img2prompt.data.sources.metadata.workflow import Link

Role = Literal["positive", "negative"]

_CONDITIONING = re.compile(r"cond(?:itioning)?(?:[_ ]?(?:to|from|[a-j]|\d{1,2}))?", re.IGNORECASE)
_NOT_TEXT = re.compile(
    r"model|clip|vae|mask|image|pixels|latent|samples|stage_c|seed|steps|cfg|.*control_?net.*"
    r"|clip_vision.*|style_model|gligen.*|negative|width|height|strength",
    re.IGNORECASE,
)
_ROLES: Mapping[int, Role] = {0: "positive", 1: "negative"}
_DEEPEST = 60  # each link takes a few frames of Python's stack
_LONGEST = 100_000


class Walk:
    """Follows conditionings and texts to their sources, every output once."""

    def __init__(self, graph: Graph, role: Role) -> None:
        self.graph = graph
        self.role: Role = role
        self._known: dict[tuple[Link, bool], list[str]] = {}
        self._written: dict[Link, str] = {}
        self._open: set[str] = set()

    def prompt(self, sampler: str) -> str:
        """Return the text of a sampler's conditioning of this role, empty when there is none.

        Several texts (combined or concatenated conditionings) are joined by commas.

        Raises:
            NoPrompt: the graph does not determine the prompt.
        """
        inputs = self.graph.inputs(sampler)
        if self.role not in inputs and (guider := link_of(inputs.get("guider"))):
            guiding = self.graph.inputs(guider.node)
            if self.role == "negative" and "negative" not in guiding:
                return ""
            texts = self._conditioning(guider._replace(slot=-1), by_slot=False)
        else:
            texts = self._input(sampler, self.role, by_slot=True)
        return ", ".join(text.strip().rstrip(",") for text in texts if text.strip(" ,\n"))

    def _input(self, node: str, name: str, by_slot: bool) -> list[str]:
        value = self.graph.inputs(node).get(name)
        if isinstance(value, str):
            return [self._literal(node, value)]
        link = link_of(value)
        return self._conditioning(link, by_slot) if link else []

    def _conditioning(self, link: Link, by_slot: bool) -> list[str]:
        """Return the distinct texts behind an output in the order of the inputs; cycles are cut."""
        key = link, by_slot
        if key in self._known or link.node in self._open or link.node not in self.graph.nodes:
            return self._known.get(key, [])
        self._enter(link)
        texts = self._texts_of_node(link, by_slot)
        self._open.discard(link.node)
        self._known[key] = list(dict.fromkeys(text for text in texts if text.strip()))
        self._limit("".join(self._known[key]))
        return self._known[key]

    def _texts_of_node(self, link: Link, by_slot: bool) -> list[str]:
        inputs, links = self.graph.inputs(link.node), self.graph.links(link.node)
        if self.graph.class_of(link.node) == "ConditioningZeroOut":
            return []
        if "positive" in inputs or self.role in inputs:
            both = "positive" in links and "negative" in links
            # ControlNet and inpainting nodes pass both on: the first output is the positive one.
            passes = (
                both and by_slot and link.slot in (0, 1) and not self.graph.is_sampler(link.node)
            )
            return self._input(link.node, _ROLES[link.slot] if passes else self.role, True)
        if (names := candidates(self.graph, link.node)) is not None:
            branches = [self._input(link.node, name, True) for name in names]
            return self._only(link, [text for branch in branches for text in branch])
        chained = [self._conditioning(links[name], True) for name in links if _is_cond(name)]
        texts = [text for branch in chained for text in branch]
        if sum(map(bool, chained)) > 1 and not joins_conditionings(self.graph.class_of(link.node)):
            texts = self._only(link, texts)
        if has_text(self.graph, link.node):
            return [*texts, self._text_of_node(link)]
        return texts or self._passed(link, links)

    def _passed(self, link: Link, links: Mapping[str, Link]) -> list[str]:
        """Return the text behind a node without any of its own: a reroute, a pipe, a switch."""
        texts = [
            text
            for name, source in links.items()
            if not _NOT_TEXT.fullmatch(name)
            for text in self._conditioning(source, by_slot="pipe" not in name and "ctx" not in name)
        ]
        return self._only(link, texts)

    def _only(self, link: Link, texts: Iterable[str]) -> list[str]:
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        if len(distinct) > 1:
            raise NoPrompt(
                f"undecided prompt: {self.graph.label(link.node)} passes on one of "
                f"{len(distinct)} texts"
            )
        return distinct

    def _text(self, node: str, name: str) -> str:
        """Return the value of a text input, or the text behind its link."""
        value = self.graph.inputs(node).get(name)
        if isinstance(value, str):
            return self._literal(node, value)
        link = link_of(value)
        return self._linked_text(link) if link else ""

    def _literal(self, node: str, text: str) -> str:
        return self._computed(node) if computes(self.graph.class_of(node), text) else text

    def _computed(self, node: str) -> NoReturn:
        raise NoPrompt(
            f"computed prompt: {self.graph.label(node)} is not known to hold a literal text, and "
            "the picture does not say what it makes of its inputs"
        )

    def _linked_text(self, link: Link) -> str:
        if link.node not in self.graph.nodes or link.node in self._open:
            return ""
        if link not in self._written:
            self._enter(link)
            shown = shows(self.graph.class_of(link.node))
            self._written[link] = self._shown(link) if shown else self._text_of_node(link)
            self._open.discard(link.node)
        return self._written[link]

    def _shown(self, link: Link) -> str:
        """Return the text behind a display node, else the one that it wrote into the drawing."""
        opened = set(self._open)
        try:
            text, reason = self._passed_text(link), None
        except NoPrompt as error:
            self._open = opened
            text, reason = "", error
        text = text or self.graph.workflow.shown.get(link.node, "")
        if reason and not text:
            raise reason
        return text

    def _text_of_node(self, link: Link) -> str:
        inputs = self.graph.inputs(link.node)
        if (names := candidates(self.graph, link.node)) is not None:
            return "".join(self._only(link, [self._text(link.node, name) for name in names]))
        if link in self.graph.workflow.lists:
            raise NoPrompt(
                f"undecided prompt: {self.graph.label(link.node)} returns a list of texts, and the "
                "picture does not say which of them made it"
            )
        words = toggled_words(self.graph.class_of(link.node), inputs)
        if words is not None:
            return self._limit(words)
        if isinstance(populated := inputs.get(POPULATED), str) and populated.strip():
            return self._limit(populated)
        role = role_of(self.graph.class_of(link.node), inputs)
        if role == "joins":
            delimiter = next((inputs[name] for name in DELIMITERS if name in inputs), "")
            glue = delimiter.replace("\\n", "\n") if isinstance(delimiter, str) else ""
            texts = [self._text(link.node, name) for name in parts(inputs)]
            return self._limit(glue.join(text for text in texts if text))
        if role == "passes":
            return self._passed_text(link)
        if role == "computes":
            self._computed(link.node)
        return self._own_text(link.node, inputs)

    def _own_text(self, node: str, inputs: Inputs) -> str:
        """Return the text of a node that holds or encodes one, after any trigger words."""
        texts = (self._text(node, name) for name in TEXTS if name in inputs)
        own = next((text for text in texts if text.strip()), "")
        before = [
            self._text(node, name) for name in trigger_inputs(self.graph.class_of(node), inputs)
        ]
        return self._limit(", ".join(text for text in (*before, own) if text.strip()) or own)

    def _passed_text(self, link: Link) -> str:
        links = self.graph.links(link.node).items()
        texts = [self._linked_text(to) for name, to in links if not _NOT_TEXT.fullmatch(name)]
        return "".join(self._only(link, texts))

    def _enter(self, link: Link) -> None:
        self._open.add(link.node)
        if len(self._open) > _DEEPEST:
            raise NoPrompt(f"undecided prompt: the graph is more than {_DEEPEST} links deep")

    def _limit(self, text: str) -> str:
        if len(text) > _LONGEST:
            raise NoPrompt(f"undecided prompt: the text has more than {_LONGEST} characters")
        return text


def _is_cond(name: str) -> bool:
    return _CONDITIONING.fullmatch(name) is not None
