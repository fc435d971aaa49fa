"""The plan of a chain as tables: one of stages for each number of pictures, and one of memory."""

import math
from collections.abc import Iterator

from img2prompt.config.planning import ScaleConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.errors import UserError
from img2prompt.model.towers.base import TowerShape
from img2prompt.model.towers.build import read_shape
from img2prompt.model.towers.clip import ClipTower
from img2prompt.planning.memory import growth
from img2prompt.planning.nodes import node
from img2prompt.planning.rates import read_rates
from img2prompt.planning.stages import StagePlan, plan_stages

L14_336 = "openai/clip-vit-large-patch14-336"
L14_336_SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
"""Published sizes, so that the main preset can be planned where its checkpoint is not."""

STAGE_COLUMNS = ["stage", "rows/s", "hours", "GPU-hours", "money", "stored", "bottleneck", "from"]
MEMORY_COLUMNS = ["grows in one process", "bytes each", "at most", "because of"]

Table = tuple[str, list[str], list[list[object]]]


def tables(config: ScaleConfig, out: str) -> Iterator[Table]:
    """Yield title, columns and rows of each table.

    Rates come from finished stages under `out`, where there are any.
    """
    shape, machine = _shape(config.chain.finetune.tower), node(config.node)
    frozen = _shape(config.chain.features.tower)
    rates = read_rates(out, config.chain.prepare.shard.size)
    for pictures in config.pictures:
        stages = plan_stages(config, shape, frozen, machine, rates, pictures)
        rows = [_row(config, machine.gpus, stage) for stage in stages]
        total = sum(stage.hours for stage in stages)
        rows.append(["all", "", *_spent(config, machine.gpus, total), "", "", ""])
        title = f"{pictures:,} pictures on {config.nodes} x {config.node}"
        yield title + _too_large(config, shape, pictures), STAGE_COLUMNS, rows
    yield f"memory, {config.head_memory_gb:g} GB", MEMORY_COLUMNS, _memory_rows(config, shape)


def _shape(tower: TowerConfig) -> TowerShape:
    try:
        return read_shape(tower)
    except UserError:
        if tower.weights != L14_336:
            raise
        return ClipTower.shape_of(ClipTower.config_class.from_dict(L14_336_SHAPE))


def _spent(config: ScaleConfig, gpus: int, hours: float) -> list[object]:
    money = f"{hours * config.nodes * config.price:,.2f}" if config.price else ""
    devices = f"{hours * config.nodes * gpus:,.3g}" if gpus else ""
    return [f"{hours:,.3g}", devices, money]


def _row(config: ScaleConfig, gpus: int, stage: StagePlan) -> list[object]:
    return [
        stage.stage,
        f"{stage.rows_per_second:,.4g}",
        *_spent(config, gpus, stage.hours),
        _bytes(stage.stored),
        stage.bottleneck,
        "; ".join(stage.sources),
    ]


def _too_large(config: ScaleConfig, shape: TowerShape, pictures: int) -> str:
    """Return the steps that would not fit the driver's memory, as an addition to a title."""
    prompts, limit = pictures / config.pictures_per_prompt, config.head_memory_gb * 1e9
    steps = {step.step for step in growth(shape) if step.total(pictures, prompts) > limit}
    names = [step.step for step in growth(shape) if step.step in steps]
    listed = ", ".join(dict.fromkeys(names))
    return f"; too large for {config.head_memory_gb:g} GB: {listed}" if names else ""


def _memory_rows(config: ScaleConfig, shape: TowerShape) -> list[list[object]]:
    rows: list[list[object]] = []
    for step in growth(shape):
        most = int(config.head_memory_gb * 1e9 / step.bytes)
        rows.append([step.step, f"{step.bytes:,.0f}", f"{most:,} {step.unit}s", step.cause])
    return rows


def _bytes(count: float) -> str:
    units = ("B", "KB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log10(max(count, 1)) // 3))
    return f"{count / 1000**power:.3g} {units[power]}"
