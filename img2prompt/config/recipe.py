"""Training techniques. Each is a function in `model/`, chosen in `train/recipe.py`."""

from dataclasses import dataclass
from typing import Literal

from img2prompt.config.base import Config
from img2prompt.config.ranges import Fraction, FractionBelowOne


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(Config):
    """Loss, augmentation and averaged weights of a training run."""

    loss: Literal["cosine"] = "cosine"
    """`cosine`: one minus the mean cosine between prediction and target."""
    flip: Fraction = 0.0
    """Probability that a training picture is mirrored, drawn for each picture in each epoch. Not
    for a probe, which reads cached features: `features.views` adds mirrored ones to its rows."""
    ema_decay: FractionBelowOne = 0.0
    """Decay of an exponential moving average of the learned weights, such as 0.999; 0: none. The
    average is validated beside the weights themselves, and the better of both is published. Not
    with ZeRO 3, which leaves each worker only a part of every weight."""
