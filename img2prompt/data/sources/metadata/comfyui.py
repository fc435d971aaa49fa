"""ComfyUI: the graph in `prompt`, followed from the saved picture to the text.

From the nodes that save (else preview, else end the graph) the links are followed back to the
nearest sampler: the last one that worked on the picture. Its positive conditioning is followed to
the texts. A picture by several samplers with different prompts, or by a graph that saves several
pictures with different prompts, has no prompt, because each picture contains the whole graph and
not which part of it made the picture. Seed, steps, scale and sampler are those of the first sampler
of the same chain of latents, which started from noise.
"""

from collections.abc import Callable, Iterator, Mapping

from img2prompt.data.sources.metadata.base import Metadata, NoPrompt, Program, number, string, whole
from img2prompt.data.sources.metadata.graph import Graph, link_of
from img2prompt.data.sources.metadata.walk import Walk

_NOT_PICTURE = {
    *("clip", "clip_vision", "conditioning", "control_net", "guider", "mask", "model", "negative"),
    *("noise", "positive", "sampler", "sigmas", "stage_c", "upscale_model", "vae"),
}
_PICTURE = ("images", "image", "samples", "video", "latent")
_VALUES = ("value", "int", "number", "Number", "seed", "noise_seed")
_FARTHEST = 5  # links between a sampler and a node that holds one of its settings


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Return the metadata of a graph in `prompt` or in the EXIF comment.

    Raises:
        NoPrompt: the graph does not determine the prompt; the message names the node.
    """
    for name in ("prompt", "Prompt", "UserComment"):
        if graph := Graph.parse(texts.get(name, ""), texts.get("workflow", "")):
            return _read_graph(graph)
    return None


PROGRAM = Program("ComfyUI", read)


def _read_graph(graph: Graph) -> Metadata:
    samplers = _last_samplers(graph)
    prompts = {Walk(graph, "positive").prompt(sampler): sampler for sampler in reversed(samplers)}
    prompts = {prompt: sampler for prompt, sampler in prompts.items() if prompt}
    if not samplers:
        raise NoPrompt(f"no prompt: none of the graph's {len(graph.nodes)} nodes is a sampler")
    if not prompts:
        raise NoPrompt(f"empty prompt: no text leads to {graph.label(samplers[0])}")
    if len(prompts) > 1:
        raise NoPrompt(
            f"undecided prompt: {len(prompts)} prompts, at {graph.label(samplers[0])} and others"
        )
    [(prompt, sampler)] = prompts.items()
    first = _first_sampler(graph, sampler)
    return Metadata(
        prompt=prompt,
        negative=_negative(graph, sampler),
        generator="comfyui",
        seed=whole(_setting(graph, first, ("seed", "noise_seed"))),
        steps=whole(_setting(graph, first, ("steps",))),
        cfg=number(_setting(graph, first, ("cfg",))),
        sampler=string(_setting(graph, first, ("sampler_name",))),
    )


def _negative(graph: Graph, sampler: str) -> str:
    try:
        return Walk(graph, "negative").prompt(sampler)
    except NoPrompt:
        return ""


def _last_samplers(graph: Graph) -> list[str]:
    """Return the nearest samplers to the saved pictures, else the nearest nodes with a positive
    input: upscalers and detailers that sample inside, loaders that feed a pipe."""
    tests: tuple[Callable[[str], bool], ...] = (
        graph.is_sampler,
        lambda node: "positive" in graph.inputs(node),
    )
    for test in tests:
        for ends in _ends(graph):
            if nearest := _nearest(graph, ends, test):
                return nearest
    return []


def _ends(graph: Graph) -> Iterator[list[str]]:
    """Yield nodes to start at: those that save, those that preview, those at the end, all."""
    linked = {link.node for node in graph.nodes for link in graph.links(node).values()}
    pictures = [node for node in graph.nodes if set(_PICTURE) & graph.links(node).keys()]
    ends = [node for node in pictures if node not in linked]
    kinds = {node: graph.nodes[node]["class_type"].lower() for node in pictures}
    yield [node for node in pictures if "save" in kinds[node]]
    yield [node for node in ends if "preview" in kinds[node]]
    yield ends
    yield list(graph.nodes)


def _nearest(graph: Graph, starts: list[str], test: Callable[[str], bool]) -> list[str]:
    """Return the first nodes that pass the test on the ways back from the starts."""
    passing, seen, queue = [], set(starts), list(starts)
    for node in queue:
        if test(node):
            passing.append(node)
            continue
        for name, link in graph.links(node).items():
            if name not in _NOT_PICTURE and link.node not in seen:
                seen.add(link.node)
                queue.append(link.node)
    return passing


def _first_sampler(graph: Graph, sampler: str) -> str:
    seen = {sampler}
    while latent := graph.latent(sampler):
        before = _nearest(graph, [latent.node], graph.is_sampler)
        if not before or before[0] in seen:
            return sampler
        sampler = before[0]
        seen.add(sampler)
    return sampler


def _setting(graph: Graph, node: str, names: tuple[str, ...], left: int = _FARTHEST) -> object:
    """Return a setting of a sampler, or of the node that its noise, sigmas, sampler or guider comes
    from; None when none has it."""
    inputs = graph.inputs(node)
    for name in names:
        value = inputs.get(name)
        if isinstance(value, int | float | str):
            return value
        if left and (link := link_of(value)):
            return _setting(graph, link.node, (*names, *_VALUES), left - 1)
    for name in ("noise", "sigmas", "sampler", "guider"):
        link = link_of(inputs.get(name))
        if left and link and (value := _setting(graph, link.node, names, left - 1)) is not None:
            return value
    return None
