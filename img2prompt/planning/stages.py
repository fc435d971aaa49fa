"""Time, storage and traffic of each stage of a chain, for a number of pictures on some nodes.

The slowest of three limits sets a stage's rate: the cores that read and decode, the devices that
run a model, and the network that brings the bytes. The stages overlap these three, as
`tests/benchmarks/features.py` and `training.py` show (95 % and more of the slowest one). The start
of processes, some 20 seconds a stage, is left out: it counts for small sets only.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from img2prompt.config.planning import ScaleConfig
from img2prompt.data.vectors import DIMENSIONS
from img2prompt.model.towers.base import TowerShape
from img2prompt.planning.nodes import Node
from img2prompt.planning.rates import Rate, Rates, forward_flop
from img2prompt.train.estimate import row_cost

HALF = 2
"""Bytes of a number of cached features (float16)."""
ENCODER_FLOP = 2 * 10_645_248
"""FLOP a token of all-MiniLM-L6-v2: six layers of four 384 x 384 and two 384 x 1,536 matrices."""


@dataclass(frozen=True)
class StagePlan:
    """A stage's plan."""

    stage: str
    rows: float
    seconds: Mapping[str, float]
    """Seconds that each limit alone would take on all nodes: `cores`, `model`, `network`."""
    stored: float
    """Bytes that the stage leaves."""
    sources: tuple[str, ...]
    """Where its numbers come from."""

    @property
    def hours(self) -> float:
        return max(self.seconds.values()) / 3600

    @property
    def bottleneck(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def rows_per_second(self) -> float:
        return self.rows / max(max(self.seconds.values()), 1e-9)


def plan_stages(
    config: ScaleConfig,
    shape: TowerShape,
    frozen: TowerShape,
    node: Node,
    rates: Rates,
    pictures: int,
) -> list[StagePlan]:
    """Return the plan of each stage that takes time with the pictures, in the chain's order.

    `shape` is that of the fine-tune's tower, `frozen` that of the features' towers.
    """
    flops, source = _model_flops(config, node, rates)
    prompts, size = pictures / config.pictures_per_prompt, rates.shard_bytes.value
    finetune = config.chain.finetune
    views, epochs = len(config.chain.features.views), finetune.optim.epochs
    held_out = config.chain.prepare.group.val_fraction + config.chain.prepare.group.test_fraction
    trained = pictures * (1 - held_out) * epochs
    a_row = row_cost(finetune, shape, half=node.gpus > 0)

    def stage(
        name: str, rows: float, core: Rate | None, flop: float, traffic: float, stored: float
    ) -> StagePlan:
        seconds = {"cores": rows * core.value / (config.nodes * node.cores) if core else 0.0}
        seconds["model"] = rows * flop / (config.nodes * flops)
        seconds["network"] = rows * traffic / (config.nodes * node.network) if node.network else 0.0
        used = ((core.source,) if core else ()) + ((source,) if flop else ())
        return StagePlan(name, rows, seconds, stored, tuple(dict.fromkeys(used)))

    vector, feature = 4 * DIMENSIONS, HALF * frozen.width * views
    return [
        stage("targets", prompts, None, ENCODER_FLOP * config.tokens, 0.0, prompts * vector),
        stage(
            "shards",
            pictures,
            rates.prepare,
            0.0,
            config.picture_bytes + size + vector,
            pictures * (size + vector),
        ),
        stage(
            "features",
            pictures,
            rates.decode,
            forward_flop(frozen) * views,
            size + feature,
            pictures * feature,
        ),
        stage(
            f"{finetune.name} ({epochs} epochs)",
            trained,
            rates.decode,
            a_row.forward + a_row.backward,
            size + vector,
            4.0 * a_row.learned,
        ),
    ]


def _model_flops(config: ScaleConfig, node: Node, rates: Rates) -> tuple[float, str]:
    """Return FLOP/s of a node's models, and the source of this number."""
    if node.gpus:
        share = f"{config.utilisation:.0%} of the GPUs' peak"
        return node.gpus * node.peak * config.utilisation, share
    return rates.machine_flops.value, rates.machine_flops.source
