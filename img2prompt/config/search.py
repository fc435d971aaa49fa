"""A search: its space, what tries it, and what it may cost."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from img2prompt.config.base import Config, check, dotted
from img2prompt.config.heads import HeadsConfig
from img2prompt.config.train import TrainConfig
from img2prompt.errors import UserError

FIXED = ("name", "seed", "start_from", "tower.", "engine.", "optim.epochs", "optim.share")
OWN = ("plan.lora_rate", "plan.nfz_rate", "head.width")
"""Fields of a TrainConfig that no further axis may be: they are the same in all trials, or have an
option of their own."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """A search in two levels: heads on cached features, then layer plans on the tower.

    Each trial of a plan is a real training run.
    """

    name: str = "search"
    """Folder name of the result."""
    base: TrainConfig
    """What all trials share."""
    probe: TrainConfig
    """What all heads share that trials start from; needed when `base.start_from` is set."""
    lora_rates: tuple[float, ...] = (0.0, 0.3, 0.45, 0.6)
    nfz_rates: tuple[float, ...] = (0.0, 0.15, 0.3, 0.45)
    head_widths: tuple[int, ...] = (0, 512)
    head_dropouts: tuple[float, ...] = (0.0, 0.2)
    head_lrs: tuple[float, ...] = (1e-3, 5e-3)
    """With `base.start_from`, every width is tried with every dropout and rate on the cached
    features, all in one pass; trials of a width start from its best head, with its dropout."""
    heads: int = 2
    """Widths that go on to the tower: those with the best heads."""
    axes: dict[str, str] = field(default_factory=dict)
    """Further axes: any field of training and its values, as `plan.lora_rank 4,16,64
    optim.lr 1e-4,5e-4`."""
    searcher: Literal["grid", "random", "tpe"] = "random"
    """Which settings are tried: `grid` all, `random` some, `tpe` those that look best after the
    scores so far (Optuna's TPE: Bergstra et al. 2011). Equal plans are one setting, invalid ones
    none."""
    trials: int = 8
    """Most settings that `random` and `tpe` try."""
    scheduler: Literal["asha", "one-epoch", "none"] = "asha"
    """Which of them are trained to the end: by ASHA at each rung the best (arXiv 1810.05934); by
    `one-epoch` the best `top` after `grace_epochs` (arXiv 2307.15422); all."""
    grace_epochs: int = 1
    """Epochs that every trial gets before it may be stopped."""
    reduction: int = 3
    """At each rung the best of every `reduction` trials go on."""
    compare: Literal["epochs", "compute"] = "epochs"
    """Trials are compared after equally many epochs, or after equally many device-seconds: those in
    which the dearest setting makes its epochs, by the FLOP of a row. A plan that costs half as much
    then has two epochs behind it where the dearest has one."""
    shares: tuple[float, ...] = (1.0,)
    """Shares of the training rows, rising to 1: all settings are trained on the first, and the best
    of every `reduction` are trained anew on the next (multi-fidelity: arXiv 1605.07079)."""
    top: int = 3
    """Best settings that `one-epoch` keeps, and that are repeated with other seeds."""
    seeds: int = 1
    """Trainings of each of the best `top` settings, with `base.seed` and those after it. Their mean
    decides then."""
    concurrent: int = 0
    """Most trials at a time; 0: as many as the cluster has room for, which is never exceeded."""
    max_hours: float = 0.0
    """Device-hours of all trials together after which no trial and no epoch is begun; 0: no limit.
    Run it again with more and it goes on."""
    max_memory_gb: float = 0.0
    """Most memory of a worker, in 1e9 bytes: dearer settings are left out; 0: no limit."""
    peak_tflops: float = 0.0
    """Of a device, in 1e12 FLOP/s, to tell the hours before any trial has run; 0: that of the GPU's
    name, or of a matrix product on this machine's CPU."""
    mfu: float = 0.4
    """Share of the peak that training is expected to reach."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lora_rates", "nfz_rates"):
            rates = getattr(self, name)
            good = len(rates) > 0 and all(0 <= rate <= 1 for rate in rates)
            check(good, name, rates, "one rate or more, each 0 to 1")
        widths = len(self.head_widths) > 0 and min(self.head_widths) >= 0
        check(widths, "head_widths", self.head_widths, "one width or more, each 0 or more")
        for name in ("heads", "trials", "grace_epochs", "top", "seeds"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check(self.reduction >= 2, "reduction", self.reduction, "2 or more")
        check(self.concurrent >= 0, "concurrent", self.concurrent, "0 (automatic) or more")
        for name in ("max_hours", "max_memory_gb", "peak_tflops"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 (none) or more")
        check(0 < self.mfu <= 1, "mfu", self.mfu, "above 0, at most 1")
        rising = list(self.shares) == sorted({*self.shares}) and self.shares[-1:] == (1.0,)
        good = rising and self.shares[0] > 0
        check(good, "shares", self.shares, "shares above 0 that rise to 1.0")
        check(self.seed >= 0, "seed", self.seed, "0 or more")
        for name, values in self.values.items():
            for value in values:  # one that no trial could have is told before all else
                self.base.replace({name: value})
        if self.base.start_from:
            self.head_grid(sorted(set(self.head_widths)))

    @property
    def heads_folder(self) -> str:
        """Of the heads of the first level, under `runs/`."""
        return f"{self.name}-heads"

    def head_grid(self, widths: Sequence[int]) -> HeadsConfig:
        """The heads of the first level, of these widths.

        Raises:
            UserError: `probe` is none, or a value is out of its range.
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
        """The values of the further axes.

        Raises:
            UserError: no such field, or no value.
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
    """Dotted fields of a TrainConfig that an axis may name."""
    return [name for name in dotted(base.to_dict()) if not name.startswith(FIXED + OWN)]


def _values(text: str) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(_value(part.strip()) for part in text.split(",") if part.strip()))


def _value(text: str) -> Any:
    """A number, true or false as JSON has them, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
