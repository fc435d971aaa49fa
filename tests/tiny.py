"""Small models, rows and runs that tests of training share."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import EngineConfig, HeadConfig, OptimConfig, PlanConfig, TrainConfig
from img2prompt.data.shards import Batch
from img2prompt.model.prompt_model import PromptModel, build_prompt_model, load_learned_state
from img2prompt.model.towers.build import open_tower
from img2prompt.train.batches import Rows, WorkerRank, total_steps
from img2prompt.train.checkpoint import Checkpoint, History, Position
from img2prompt.train.engines.build import build_engine
from img2prompt.train.loop import Loop
from img2prompt.train.recipe import Recipe, build_recipe

CPU = torch.device("cpu")
ALONE = WorkerRank()
FINETUNE = PlanConfig(lora_rate=0.5, nfz_rate=0.25, lora_rank=4)
TINY = TrainConfig(
    name="run",
    optim=OptimConfig(epochs=3, batch_size=16, lr=2e-3, head_lr=5e-3, clip_norm=0.05),
    engine=EngineConfig(kind="plain", workers=1, precision="fp32"),
)


def config_of(tower: str, plan: PlanConfig = FINETUNE, width: int = 0, **changes) -> TrainConfig:
    """A run of a few steps in float32; `changes` are dotted, with `_` twice for the dot."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    base = {"tower": TowerConfig(weights=tower), "plan": plan, "head": HeadConfig(width=width)}
    return TINY.replace({name: part.to_dict() for name, part in base.items()}).replace(dotted)


def model_of(config: TrainConfig) -> PromptModel:
    tower = open_tower(config.tower, config.seed)
    width, kept = tower.shape.width, None if config.plan.frozen_tower else tower
    return build_prompt_model(kept, width, config.plan, config.head, config.seed)


@dataclass
class Trained:
    """A run in this process."""

    saved: list[Checkpoint]
    reported: History
    model: PromptModel


def run_loop(
    config: TrainConfig,
    train: Rows,
    val: Rows,
    worker: WorkerRank = ALONE,
    start: Checkpoint | None = None,
    device: torch.device = CPU,
    run: Trained | None = None,
    recipe: Recipe | None = None,
    **hooks: Any,
) -> Trained:
    """Train, or resume from `start`, keeping all checkpoints in memory; `hooks` are the loop's."""
    run = run or Trained([], [], model_of(config))
    recipe = recipe or build_recipe(config, run.model)
    if start is not None:
        load_learned_state(run.model, dict(start.engine.model), "start")
    engine = build_engine(run.model, config, total_steps(config, len(train)), device)
    if start is not None:
        engine.load(start.engine)
        recipe.load(start.recipe)

    def save(position: Position) -> None:
        run.saved.append(Checkpoint(position, engine.state(), recipe.state()))

    loop = Loop(
        config=config,
        engine=engine,
        recipe=recipe,
        train=train,
        val=val,
        worker=worker,
        save=save,
        report=run.reported.append,
        **hooks,
    )
    loop.run(start.position if start else Position())
    return run


def average_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The moving average of the weights in a checkpoint."""
    prefix, state = "ema/weights/", checkpoint.recipe
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}


class MemoryRows:
    """Noise pictures whose brightness determines the target, in groups of five."""

    def __init__(self, rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        light = rng.uniform(0, 1, (rows, 1))
        noise = rng.uniform(0, 60, (rows, 32, 32, 3))
        self.pixels = (noise + 195 * light[..., None, None]).astype(np.uint8)
        ends = np.random.default_rng(99).normal(size=(2, 384))
        self.targets = (light * ends[0] + (1 - light) * ends[1]).astype(np.float32)
        self.group_sizes = np.array([5] * (rows // 5) + [rows % 5])

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, rows: np.ndarray) -> Batch:
        ids, prompt_ids = ([f"{name}-{row}" for row in rows] for name in ("row", "prompt"))
        return Batch(ids, self.pixels[rows], self.targets[rows], prompt_ids)


def is_noise(name: str, wide: bool) -> bool:
    """Return whether a tensor's gradient is rounding noise, which Adam turns into steps.

    A bias of keys changes no attention. BatchNorm of a wide head takes out what the last LayerNorm
    of the tower adds to all rows, and keeps it in its running mean.
    """
    shifts = ("post_layernorm.bias", "head.1.running_mean")
    return name.endswith("k_proj.bias") or (wide and name.endswith(shifts))


def assert_close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float
) -> None:
    """Compare names and numbers, without tensors that rounding noise moves."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if not is_noise(name, wide="head.1.weight" in expected):
            torch.testing.assert_close(
                found[name],
                tensor,
                atol=atol,
                rtol=0,
                msg=lambda text, name=name: f"{name}: {text}",
            )
