"""Node types of clusters, and the machine of this process."""

from dataclasses import dataclass

from img2prompt.distributed.placement import usable_cores
from img2prompt.train.steplog import PEAKS


@dataclass(frozen=True)
class Node:
    """Resources of one node."""

    cores: int
    """Logical CPUs."""
    gpus: int = 0
    peak: float = 0.0
    """16-bit FLOP/s of one GPU."""
    network: float = 0.0
    """Bytes per second; 0: unknown."""


GBIT = 1e9 / 8
NODES = {
    "g6.12xlarge": Node(48, 4, PEAKS["L4"], 40 * GBIT),
    "p4d.24xlarge": Node(96, 8, PEAKS["A100"], 400 * GBIT),
    "p5.48xlarge": Node(192, 8, PEAKS["H100"], 3200 * GBIT),
    "g2-standard-48": Node(48, 4, PEAKS["L4"], 50 * GBIT),
}
"""From the clouds' data sheets. A single stream to an object store reaches a fraction of it."""


def node(name: str) -> Node:
    """Return the node type, or the CPUs that this process may use for `this`."""
    return Node(usable_cores()) if name == "this" else NODES[name]
