"""The heads that trials start from."""

from collections.abc import Iterable

from img2prompt.artifact import Artifact
from img2prompt.config import SearchConfig
from img2prompt.model.space import start_name
from img2prompt.stages import train
from img2prompt.storage import join


def start_heads(
    config: SearchConfig, widths: Iterable[int], inputs: train.Inputs, out: str
) -> dict[int, Artifact]:
    """A probe for each head width, in `out`/runs; none when trials start from fresh heads."""
    if not config.base.start_from:
        return {}
    heads = {}
    for width in sorted(set(widths)):
        name = start_name(config, width)
        probe = config.probe.replace({"name": name, "head.width": width})
        heads[width] = train.run(probe, inputs, join(out, "runs", name))
    return heads
