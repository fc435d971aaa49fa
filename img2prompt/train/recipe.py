"""The seam for training ideas: the loop calls a `Recipe`, and knows no idea by name.

To add an idea: write its function in `model/`, a field in `config/recipe.py`, and choose the
function by the field in `build_recipe`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from img2prompt.config.train import TrainConfig
from img2prompt.model.augment import flip
from img2prompt.model.average import WeightAverage
from img2prompt.model.loss import cosine_loss
from img2prompt.train.batches import DeviceBatch
from img2prompt.train.checkpoint import RAW, Checkpoint, Position
from img2prompt.train.engines.base import Engine, copy_of

Augment = Callable[[DeviceBatch, Position], DeviceBatch]
"""Changes a batch on the device: a function of seed, epoch and row ids, never of a worker's rank or
a generator's state, so that resumed runs and any number of workers see the same rows."""

Loss = Callable[[Tensor, DeviceBatch], tuple[Tensor, Mapping[str, Tensor]]]
"""Predictions (B, 384) and their batch to the mean loss over the rows, and its parts by name, which
are logged: none if the loss has but one."""


def cosine(predicted: Tensor, batch: DeviceBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return one minus the mean cosine with the targets."""
    return cosine_loss(predicted, batch.targets), {}


def unchanged(batch: DeviceBatch, position: Position) -> DeviceBatch:
    """Return the batch without augmentation."""
    return batch


@dataclass
class Recipe:
    """The techniques of one run."""

    loss: Loss = cosine
    augment: Augment = unchanged
    averages: dict[str, WeightAverage] = field(default_factory=dict)
    """Averaged weights, by the name under which they are validated."""

    def after_step(self, engine: Engine) -> None:
        """Update averages after an optimiser step; every worker calls it with whole weights."""
        for average in self.averages.values():
            average.update(engine.module)

    def state(self) -> dict[str, Tensor]:
        """Return a copy on the CPU of everything a checkpoint needs to resume exactly, by name."""
        return {
            f"{name}/{key}": tensor
            for name, average in self.averages.items()
            for key, tensor in copy_of(average.state()).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for name, average in self.averages.items():
            prefix = f"{name}/"
            own = {key: tensor for key, tensor in state.items() if key.startswith(prefix)}
            average.load({key.removeprefix(prefix): tensor for key, tensor in own.items()})

    def weights_to_validate(self) -> dict[str, Mapping[str, Tensor]]:
        """Return sets of learned tensors to validate beside the module's own, by name."""
        return {name: average.weights for name, average in self.averages.items() if average.weights}


def build_recipe(config: TrainConfig) -> Recipe:
    """Build the recipe that a run's config names."""
    recipe, seed = config.recipe, config.seed

    def flipped(batch: DeviceBatch, position: Position) -> DeviceBatch:
        pixels = flip(batch.inputs, batch.ids, recipe.flip, seed, position.epoch)
        return replace(batch, inputs=pixels)

    return Recipe(
        loss={"cosine": cosine}[recipe.loss],
        augment=flipped if recipe.flip else unchanged,
        averages={"ema": WeightAverage(recipe.ema_decay)} if recipe.ema_decay else {},
    )


def validated_weights(
    config: TrainConfig, checkpoint: Checkpoint, name: str
) -> Mapping[str, Tensor]:
    """Return a checkpoint's weights by name: RAW, or a set that its recipe validates."""
    if name == RAW:
        return checkpoint.engine.model
    recipe = build_recipe(config)
    recipe.load(checkpoint.recipe)
    return recipe.weights_to_validate()[name]
