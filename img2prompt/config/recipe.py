"""Training techniques. Each is a function in `model/`, chosen in `train/recipe.py`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from img2prompt.config.base import Config
from img2prompt.config.ranges import (
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
)

Cosine = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(Config):
    """Loss, augmentation and averaged weights of a training run."""

    loss: Literal["cosine", "angular"] = "cosine"
    """`cosine`: one minus the mean cosine between prediction and target. `angular`: the mean angle
    between them, over pi (33rd place of Kaggle's "Stable Diffusion - Image to Prompts", where it
    was better than the cosine)."""
    mse_weight: NonNegativeFloat = 0.0
    """Weight of an added mean squared error of the 384 numbers, which also asks for unit length;
    0: none. The 6th place added 0.01 of it to torch's `CosineEmbeddingLoss`, which is the loss
    `cosine` for pairs that belong together."""
    negative_weight: NonNegativeFloat = 0.0
    """Weight of an added `CosineEmbeddingLoss` of pairs that do not belong together: each
    prediction with the vector of another prompt of the global batch; 0: none. The 100th place had
    10 % such pairs."""
    negative_margin: Cosine = 0.5
    """Cosine above which a pair of `negative_weight` costs something: 0.5 at the 100th place, -0.5
    at the 6th, which does not say whether it had such pairs."""
    info_nce_weight: NonNegativeFloat = 0.0
    """Weight of an added InfoNCE loss (arXiv 1807.03748): the cross-entropy of finding a picture's
    own prompt among the distinct prompts of the global batch; 0: none. The number of workers and
    `engine.micro_batch` do not change it. It helped the 11th place beside the cosine, and was worse
    in its stead at the 12th."""
    info_nce_temperature: PositiveFloat = 0.07
    """Temperature that cosines are divided by in `info_nce_weight`; 0.07 is CLIP's first one (arXiv
    2103.00020)."""
    l2_sp: NonNegativeFloat = 0.0
    """Weight of an added pull of the trained layers toward their pretrained weights: half their
    squared distance (L2-SP, arXiv 1802.01483); 0: none. Not for LoRA matrices and the head. The
    11th place decayed toward its pretrained weights. Not for a probe, and not with ZeRO 3, which
    leaves each worker only a part of every weight."""
    flip: Fraction = 0.0
    """Probability that a training picture is mirrored, drawn for each picture in each epoch. Not
    for a probe, which reads cached features: `features.views` adds mirrored ones to its rows."""
    flip_guard: bool = False
    """Do not mirror pictures whose prompt says left or right (28th place)."""
    one_per_prompt: bool = False
    """Train on one picture of each prompt in an epoch, drawn anew for each epoch, instead of on all
    (1st, 3rd and 5th place). An epoch then has as many rows as there are prompts; costs are still
    predicted for all pictures. Not for a probe."""
    crop_area: PositiveFraction = 1.0
    """Smallest share of a training picture's area that a random resized crop leaves (arXiv
    1409.4842), drawn for each picture in each epoch; 1: none. The 5th place had 0.5. Not for a
    probe, as the augmentations below."""
    rand_augment: NonNegativeInt = 0
    """Operations of RandAugment (arXiv 1909.13719) on each training picture, without posterize,
    solarize and equalize (3rd place, whose other settings are unpublished); 0: none."""
    rand_augment_magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """Strength of these operations, of 10; 9 is the paper's for ImageNet."""
    erase: Fraction = 0.0
    """Probability that a rectangle of a training picture is filled with the picture's mean colour
    (random erasing, arXiv 1708.04896). The 3rd place had it."""
    ema_decay: FractionBelowOne = 0.0
    """Decay of an exponential moving average of the learned weights, such as 0.999; 0: none. The
    average is validated beside the weights themselves, and the better of both is published. Not
    with ZeRO 3, which leaves each worker only a part of every weight."""

    @property
    def augments(self) -> bool:
        """True if training pictures are changed."""
        changes = self.flip > 0, self.crop_area < 1, self.rand_augment > 0, self.erase > 0
        return any(changes)
