"""A search: its space, its strategy and its budget."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from img2prompt.config.base import Config, check, dotted
from img2prompt.config.heads import HeadsConfig
from img2prompt.config.ranges import (
    Fraction,
    FractionBelowOne,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
)
from img2prompt.config.train import TrainConfig
from img2prompt.errors import UserError

FIXED = (
    *("name", "seed", "start_from", "tower.", "engine.", "optim.epochs", "optim.share"),
    *("optim.solver", "optim.ridge_"),
)
OWN = ("plan.lora_rate", "plan.nfz_rate", "head.width")
"""Fields of a TrainConfig that cannot be a further axis: FIXED are the same in all trials, OWN have
options of their own."""

NotEmpty = Field(min_length=1)
LimitOrNone = Annotated[float, Field(ge=0, description="0 (none) or more")]


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """A search in two levels: heads on cached features, then layer plans on the tower.

    Each trial of a plan is a real training run.
    """

    name: str = "search"
    """Folder name of the result."""
    base: TrainConfig
    """Settings that all trials share."""
    probe: TrainConfig
    """Settings that all heads share from which trials start; used when `base.start_from` is set."""
    lora_rates: Annotated[tuple[Fraction, ...], NotEmpty] = (0.0, 0.3, 0.45, 0.6)
    nfz_rates: Annotated[tuple[Fraction, ...], NotEmpty] = (0.0, 0.15, 0.3, 0.45)
    head_widths: Annotated[tuple[NonNegativeInt, ...], NotEmpty] = (0, 512)
    head_dropouts: Annotated[tuple[FractionBelowOne, ...], NotEmpty] = (0.0, 0.2)
    head_lrs: Annotated[tuple[PositiveFloat, ...], NotEmpty] = (1e-3, 5e-3)
    """With `base.start_from`, every width is tried with every dropout and rate on the cached
    features, all in one pass; trials of a width start from its best head, with its dropout."""
    heads: PositiveInt = 2
    """Head widths that trials on the tower use: those with the best heads."""
    axes: dict[str, str] = field(default_factory=dict)
    """Further axes: any field of training and its values, as `plan.lora_rank 4,16,64
    optim.lr 1e-4,5e-4`."""
    searcher: Literal["grid", "random", "tpe"] = "random"
    """Settings to try. `grid`: all. `random`: some. `tpe`: those that look best after the
    scores so far (Optuna's TPE: Bergstra et al. 2011). Equal plans count as one setting, invalid
    ones are left out."""
    trials: PositiveInt = 8
    """Most settings that `random` and `tpe` try."""
    scheduler: Literal["asha", "one-epoch", "none"] = "asha"
    """Trials to train to the end. `asha`: the best at each rung (arXiv 1810.05934).
    `one-epoch`: the best `top` after `grace_epochs` (arXiv 2307.15422). `none`: all."""
    grace_epochs: PositiveInt = 1
    """Epochs that every trial gets before it may be stopped."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """At each rung the best of every `reduction` trials continue."""
    compare: Literal["epochs", "compute"] = "epochs"
    """Compare trials after the same number of epochs, or after the same compute: that of the epochs
    of the most expensive setting, by the FLOP of a row. A plan that costs half as much has then
    made two epochs where the most expensive one has made one."""
    shares: tuple[PositiveFraction, ...] = (1.0,)
    """Shares of the training rows, rising to 1: all settings are trained on the first, and the best
    of every `reduction` are trained again on the next (multi-fidelity: arXiv 1605.07079)."""
    top: PositiveInt = 3
    """Best settings that `one-epoch` keeps, and that are repeated with other seeds."""
    seeds: PositiveInt = 1
    """Runs of each of the best `top` settings, with `base.seed` and the seeds after it. With more
    than one, their mean score decides."""
    concurrent: Annotated[int, Field(ge=0, description="0 (automatic) or more")] = 0
    """Most trials at a time, and never more than the cluster has room for; 0: as many as that."""
    max_hours: LimitOrNone = 0.0
    """Device-hours of all trials together after which no trial or epoch starts; 0: no limit. Run
    the search again with more, and it resumes."""
    max_memory_gb: LimitOrNone = 0.0
    """Most memory of a worker, in 1e9 bytes: settings that need more are left out; 0: no limit."""
    peak_tflops: LimitOrNone = 0.0
    """Peak of a device in 1e12 FLOP/s, to predict the hours before any trial has run; 0: that of
    the GPU's data sheet, or of a matrix product measured on this machine's CPU."""
    mfu: PositiveFraction = 0.4
    """Share of the peak that training is expected to reach."""
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = list(self.shares) == sorted({*self.shares}) and self.shares[-1:] == (1.0,)
        check(rising, "shares", self.shares, "shares above 0 that rise to 1.0")
        solver = self.base.optim.solver
        check(solver == "adamw", "base.optim.solver", solver, "adamw: trials learn in epochs")
        for name, values in self.values.items():
            for value in values:  # report an invalid value before any trial runs
                self.base.replace({name: value})
        if self.base.start_from:
            self.head_grid(sorted(set(self.head_widths)))

    @property
    def heads_folder(self) -> str:
        """Folder under `runs/` of the heads of the first level."""
        return f"{self.name}-heads"

    def head_grid(self, widths: Sequence[int]) -> HeadsConfig:
        """Return the config of the first level: heads of these widths.

        Raises:
            UserError: `probe` is not a probe, or a value is out of its range.
        """
        return HeadsConfig(
            name=self.heads_folder,
            base=self.probe,
            widths=tuple(widths),
            dropouts=self.head_dropouts,
            lrs=self.head_lrs,
        )

    @functools.cached_property
    def values(self) -> Mapping[str, tuple[Any, ...]]:
        """Values of the further axes, by dotted field.

        Raises:
            UserError: an axis names no field of training, or has no value.
        """
        possible = possible_axes(self.base)
        for name, text in self.axes.items():
            if name not in possible:
                raise UserError(
                    f"axes names {name!r}; allowed: {', '.join(possible)}. The rates, the head's "
                    "width and the epochs have options of their own"
                )
            check(bool(text.strip(", ")), f"axes {name}", text, "values with commas between them")
        return {name: _values(text) for name, text in self.axes.items()}


def possible_axes(base: TrainConfig) -> list[str]:
    """Return the dotted fields of a TrainConfig that an axis may name."""
    return [name for name in dotted(base.to_dict()) if not name.startswith(FIXED + OWN)]


def _values(text: str) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(_value(part.strip()) for part in text.split(",") if part.strip()))


def _value(text: str) -> Any:
    """Read a number, `true` or `false` as JSON; anything else stays text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
