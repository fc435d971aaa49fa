"""Probes for cross-validation: one for each fold of the pictures, trained on all other folds.

They learn in this process, and nothing is saved. A probe by AdamW ends with the weights of its last
epoch: no rows are spent on choosing one.
"""

import logging
from dataclasses import replace

import numpy as np
import torch

from img2prompt.config.train import TrainConfig
from img2prompt.data.order import steps_per_epoch
from img2prompt.data.shards import SPLITS, Batch
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import PromptModel, build_prompt_model, load_learned_state
from img2prompt.train.batches import Rows, WorkerRank, prefetch, to_device, total_steps
from img2prompt.train.checkpoint import Position
from img2prompt.train.engines.plain import PlainEngine
from img2prompt.train.folds import FoldedFeatures
from img2prompt.train.health import NonFiniteLossError
from img2prompt.train.loop import Loop
from img2prompt.train.recipe import build_recipe
from img2prompt.train.ridge import solve_by_fold

logger = logging.getLogger(__name__)


class LoadedRows:
    """Cached features of all views in memory, with their targets: training rows of a fold."""

    def __init__(self, features: np.ndarray, targets: np.ndarray) -> None:
        self.features = features
        self.targets = targets
        self.group_sizes = np.array([len(features)], np.int64)

    def __len__(self) -> int:
        return len(self.features)

    def fetch(self, rows: np.ndarray) -> Batch:
        names = [str(row) for row in rows]
        return Batch(names, self.features[rows], self.targets[rows], names)


def probes_by_fold(config: TrainConfig, data: FoldedFeatures, width: int) -> list[PromptModel]:
    """Return, for each fold, a probe that has not seen it: (B, `width`) to (B, 384), on the CPU.

    Raises:
        UserError: the config averages weights, starts from another run or has a loss of several
            prompts, a feature is not finite, or a loss is not.
    """
    assert config.plan.frozen_tower, "probes learn from cached features"
    if config.recipe.ema_decay or config.start_from:
        raise UserError(
            f"{config.name} has recipe.ema_decay {config.recipe.ema_decay} and start_from "
            f"{config.start_from!r}; allowed with folds: 0 and empty"
        )
    if build_recipe(config).reads_prompts:
        raise UserError(
            f"{config.name} has recipe.negative_weight {config.recipe.negative_weight} and "
            f"recipe.info_nce_weight {config.recipe.info_nce_weight}; allowed with folds: 0, as "
            "the rows of folds do not say which of them share a prompt"
        )
    if config.optim.solver == "ridge":
        return _solved(config, data, width)
    rows, folds = _load(data)
    probes = []
    for fold in range(data.folds):
        learned = folds != fold
        probes.append(_trained(config, LoadedRows(rows.features[learned], rows.targets[learned])))
        logger.info("%s: trained without fold %d of %d", config.name, fold + 1, data.folds)
    return probes


def _solved(config: TrainConfig, data: FoldedFeatures, width: int) -> list[PromptModel]:
    models = []
    for state in solve_by_fold(config.optim.ridge_strengths, data, SPLITS, map):
        model = build_prompt_model(None, width, config.plan, config.head, config.seed)
        load_learned_state(model, state, config.name)
        models.append(model.eval())
    return models


def _load(data: FoldedFeatures) -> tuple[LoadedRows, np.ndarray]:
    """Return the rows of all splits and views, and the fold of each."""
    features, targets, folds = [], [], []
    for files in data.parts(SPLITS):
        for name in files:
            for number, own_features, own_targets, _ in data.read(name):
                features.append(own_features)
                targets.append(own_targets)
                folds.append(np.full(len(own_features), number))
    rows = LoadedRows(np.concatenate(features), np.concatenate(targets))
    return rows, np.concatenate(folds)


def _trained(config: TrainConfig, rows: Rows) -> PromptModel:
    """Train a probe for all epochs."""
    width = rows.fetch(np.arange(1)).inputs.shape[1]
    model = build_prompt_model(None, width, config.plan, config.head, config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine = PlainEngine(model, config, total_steps(config, len(rows)), device)
    loop = Loop(
        config=config,
        engine=engine,
        recipe=build_recipe(config),
        train=rows,
        val=rows,
        worker=WorkerRank(),
        save=lambda _: None,
    )
    steps = steps_per_epoch(len(rows), config.optim.batch_size)
    model.train()
    position = Position()
    for epoch in range(config.optim.epochs):
        for batch in prefetch(rows, loop.shares(epoch, range(steps))):
            try:
                position, _ = loop.advance(position, to_device(batch, device))
            except NonFiniteLossError as error:
                raise UserError(str(error)) from error
        position = replace(position, epoch=epoch + 1, step=0)
    return model.cpu().eval()
