"""Predicted cost of a training run, from its config and the shape of its tower."""

from collections.abc import Mapping
from typing import Any

import torch

from img2prompt.config.train import EngineConfig, TrainConfig
from img2prompt.data.order import rows_in_share, steps_per_epoch
from img2prompt.distributed.placement import has_gpus
from img2prompt.model.cost import Cost
from img2prompt.model.precision import compute_dtype
from img2prompt.model.run_cost import cost
from img2prompt.model.towers.base import TowerShape
from img2prompt.train.batches import rows_at_once
from img2prompt.train.recipe import build_recipe


def estimate(config: TrainConfig, shape: TowerShape) -> Cost:
    """Predict the cost of a row of this run on the connected cluster."""
    return row_cost(config, shape, half=_in_half(config.engine))


def row_cost(config: TrainConfig, shape: TowerShape, *, half: bool) -> Cost:
    """Predict the cost of a row; `half`: matrix products are in 16 bits."""
    cached = config.plan.frozen_tower
    return cost(shape, config.plan, config.head, half=half, cached=cached)


def epoch_flop(config: TrainConfig, shape: TowerShape, counts: Mapping[str, Any]) -> int:
    """Predict the FLOP of an epoch with its validation; `counts` are the rows of the splits."""
    a_row = row_cost(config, shape, half=False)
    rows = rows_of_epoch(config, counts["train"])
    validated = counts["val"] * (1 + average_count(config))
    return rows * (a_row.forward + a_row.backward) + validated * a_row.forward


def rows_of_epoch(config: TrainConfig, rows: int) -> int:
    """Return the rows that an epoch trains on: whole batches of the configured share of `rows`."""
    size = config.optim.batch_size
    return steps_per_epoch(rows_in_share(rows, config.optim.share), size) * size


def run_flop(config: TrainConfig, shape: TowerShape, counts: Mapping[str, Any]) -> int:
    """Predict the FLOP of a whole run; `counts` are the rows of the splits."""
    return config.optim.epochs * epoch_flop(config, shape, counts)


def memory_arguments(config: TrainConfig, workers: int) -> tuple[int, int, int, int, bool]:
    """Return the arguments of `Cost.memory`: rows at once, workers, ZeRO stage, averages, pull."""
    zero_stage = 0 if config.engine.kind == "plain" else config.engine.zero_stage
    rows, averages = rows_at_once(config, workers), average_count(config)
    return rows, workers, zero_stage, averages, config.recipe.l2_sp > 0


def average_count(config: TrainConfig) -> int:
    """Return how many averages of its weights a run keeps and validates."""
    return len(build_recipe(config).averages)


def _in_half(engine: EngineConfig) -> bool:
    """Return True if workers will compute in 16 bits; the driver may have no GPU itself."""
    if engine.precision == "auto" and has_gpus():
        return True
    return compute_dtype(engine.precision, torch.device("cpu")) != torch.float32
