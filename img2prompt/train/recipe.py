"""The seam for training ideas: the loop calls a `Recipe`, and knows no idea by name.

To add an idea: write its function in `model/`, a field in `config/recipe.py`, and choose the
function by the field in `build_recipe`.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from img2prompt.config.recipe import RecipeConfig
from img2prompt.config.train import TrainConfig
from img2prompt.model.augment import flip, random_erase, random_resized_crop
from img2prompt.model.average import WeightAverage
from img2prompt.model.l2_sp import PretrainedPull, pretrained_tensors
from img2prompt.model.loss import (
    angular_loss,
    cosine_loss,
    info_nce_loss,
    negative_loss,
    squared_error,
)
from img2prompt.model.rand_augment import rand_augment
from img2prompt.train.batches import DeviceBatch
from img2prompt.train.checkpoint import RAW, Checkpoint, Position
from img2prompt.train.engines.base import Engine, copy_of

Augment = Callable[[DeviceBatch, Position], DeviceBatch]
"""Changes a batch on the device: a function of seed, epoch and row ids, never of a worker's rank or
a generator's state, so that resumed runs and any number of workers see the same rows."""

Loss = Callable[[Tensor, DeviceBatch], tuple[Tensor, Mapping[str, Tensor]]]
"""Predictions (B, 384) and their batch to the mean loss over the rows, and its parts by name, which
are logged: none if the loss has but one."""

Penalty = Callable[[nn.Module], Tensor]
"""The model in training to a weighted term of its loss."""


def cosine(predicted: Tensor, batch: DeviceBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return one minus the mean cosine with the targets."""
    return cosine_loss(predicted, batch.targets), {}


def angular(predicted: Tensor, batch: DeviceBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return the mean angle to the targets, over pi."""
    return angular_loss(predicted, batch.targets), {}


LOSSES: Mapping[str, Loss] = {"cosine": cosine, "angular": angular}


@dataclass(frozen=True)
class SumOfLosses:
    """The main loss of a config and its weighted added terms, as a `Loss`."""

    config: RecipeConfig

    @property
    def reads_prompts(self) -> bool:
        """True if a term reads the prompts of the global batch."""
        return self.config.negative_weight > 0 or self.config.info_nce_weight > 0

    def __call__(
        self, predicted: Tensor, batch: DeviceBatch
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        config = self.config
        total, _ = LOSSES[config.loss](predicted, batch)
        parts: dict[str, Tensor] = {config.loss: total}
        if config.mse_weight:
            parts["mse"] = squared_error(predicted, batch.targets)
            total = total + config.mse_weight * parts["mse"]
        if self.reads_prompts:
            assert batch.prompts is not None, "the loop gathers them"
            prompts = batch.prompts.targets, batch.prompts.positions(batch.prompt_ids)
            if config.negative_weight:
                parts["negative"] = negative_loss(predicted, *prompts, config.negative_margin)
                total = total + config.negative_weight * parts["negative"]
            if config.info_nce_weight:
                parts["info_nce"] = info_nce_loss(predicted, *prompts, config.info_nce_temperature)
                total = total + config.info_nce_weight * parts["info_nce"]
        return total, parts


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
    reads_prompts: bool = False
    """True if the loss reads the prompts of the global batch, which the loop then gathers."""
    penalties: dict[str, Penalty] = field(default_factory=dict)
    """Weighted terms of the loss that depend on the model alone, by the name they are logged by."""

    def penalised(
        self, loss: Tensor, parts: Mapping[str, Tensor], model: nn.Module
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return a loss and its parts with the penalties of the model added."""
        if not self.penalties:
            return loss, parts
        terms = {name: penalty(model) for name, penalty in self.penalties.items()}
        return loss + sum(terms.values()), {"rows": loss, **parts, **terms}

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


def build_recipe(
    config: TrainConfig, model: nn.Module | None = None, guarded: Container[str] = ()
) -> Recipe:
    """Build the recipe that a run's config names.

    `model` is that of the run at its start, before a checkpoint is loaded, and `guarded` are the
    ids of prompts whose pictures are not mirrored. They are needed to train, not to read the state
    of a recipe.
    """
    recipe = config.recipe
    terms, penalties = SumOfLosses(recipe), dict[str, Penalty]()
    if recipe.l2_sp and model is not None:
        pull = PretrainedPull(pretrained_tensors(model))
        penalties["l2_sp"] = lambda trained: recipe.l2_sp * pull(trained)
    return Recipe(
        loss=terms if terms.reads_prompts or recipe.mse_weight else LOSSES[recipe.loss],
        augment=build_augment(recipe, config.seed, guarded),
        averages={"ema": WeightAverage(recipe.ema_decay)} if recipe.ema_decay else {},
        reads_prompts=terms.reads_prompts,
        penalties=penalties,
    )


def build_augment(recipe: RecipeConfig, seed: int, guarded: Container[str] = ()) -> Augment:
    """Return the augmentations that are switched on, in the order in which they are applied."""

    def augmented(batch: DeviceBatch, position: Position) -> DeviceBatch:
        pixels, ids, draw = batch.inputs, batch.ids, (seed, position.epoch)
        if recipe.crop_area < 1:
            pixels = random_resized_crop(pixels, ids, recipe.crop_area, *draw)
        if recipe.flip:
            rows = {row for row, prompt in enumerate(batch.prompt_ids) if prompt in guarded}
            pixels = flip(pixels, ids, recipe.flip, *draw, rows)
        if recipe.rand_augment:
            settings = recipe.rand_augment, recipe.rand_augment_magnitude
            pixels = rand_augment(pixels, ids, *settings, *draw)
        if recipe.erase:
            pixels = random_erase(pixels, ids, recipe.erase, *draw)
        return replace(batch, inputs=pixels)

    return augmented if recipe.augments else unchanged


def validated_weights(
    config: TrainConfig, checkpoint: Checkpoint, name: str
) -> Mapping[str, Tensor]:
    """Return a checkpoint's weights by name: RAW, or a set that its recipe validates."""
    if name == RAW:
        return checkpoint.engine.model
    recipe = build_recipe(config)
    recipe.load(checkpoint.recipe)
    return recipe.weights_to_validate()[name]
