"""The space of a search: its distinct settings, and the complete config that each of them is.

Rates are searched in whole layers. Settings that train the same layers in the same way are one:
`int(24 * rate)` gives a 0.05 grid of 441 points over 24 layers 243 valid plans (the one in which no
layer learns is the probe), and the rank of LoRA says nothing where no layer has LoRA.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np

from img2prompt.config.search import SearchConfig
from img2prompt.config.train import PlanConfig, TrainConfig
from img2prompt.errors import UserError
from img2prompt.model.plan import LayerPlan, layer_plan

OF_LORA = tuple(f"plan.{f.name}" for f in fields(PlanConfig) if f.name.startswith("lora_"))[1:]
"""Fields that say nothing where no layer has LoRA."""


@dataclass(frozen=True)
class Setting:
    """One point of the space."""

    lora_rate: float
    nfz_rate: float
    head_width: int
    options: tuple[tuple[str, Any], ...] = ()
    """Values of the search's other axes, by dotted field of a TrainConfig."""

    @property
    def name(self) -> str:
        """Of its trials; a folder name."""
        plan = f"lora{self.lora_rate:g}-nfz{self.nfz_rate:g}-head{self.head_width}"
        return "-".join([plan, *(f"{name}{_told(value)}" for name, value in self.options)])

    def to_dict(self) -> dict[str, Any]:
        """The values of all axes by name."""
        own = {name: getattr(self, name) for name in ("lora_rate", "nfz_rate", "head_width")}
        return own | dict(self.options)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Setting":
        own = {name: values[name] for name in ("lora_rate", "nfz_rate", "head_width")}
        return cls(**own, options=tuple((n, v) for n, v in values.items() if n not in own))


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "_")


@dataclass(frozen=True)
class Space:
    """What a search may try."""

    settings: tuple[Setting, ...]
    """All that differ, in the order of the axes."""
    places: Mapping[tuple[Any, ...], Setting]
    """The same by (layers with LoRA, trained layers, head width, values of the other axes); a
    setting may have several places."""
    points: int
    """Of the whole grid."""
    overlapping: int
    """Points whose layers with LoRA and trained layers are more than the tower has."""
    idle: int
    """Points in which no layer learns: those are the probe."""
    equal: int
    """Points that are the same training run as an earlier one."""
    refused: tuple[tuple[str, str], ...] = ()
    """Name and reason of points that are no valid config."""

    def only(self, kept: Collection[Setting]) -> "Space":
        """The space without the other settings."""
        places = {place: setting for place, setting in self.places.items() if setting in kept}
        settings = tuple(setting for setting in self.settings if setting in kept)
        return replace(self, settings=settings, places=places)


def space_of(config: SearchConfig, depth: int) -> Space:
    """The space for a tower of `depth` layers.

    Raises:
        UserError: no point is left.
    """
    distinct: dict[str, Setting] = {}
    places: dict[tuple[Any, ...], Setting] = {}
    grid = _grid(config)
    overlapping, idle, refused = 0, 0, []
    for setting in grid:
        try:
            layers = layer_plan(depth, setting.lora_rate, setting.nfz_rate)
        except UserError:
            overlapping += 1
            continue
        if not layers.lora and not layers.trained:
            idle += 1
            continue
        try:
            same = distinct.setdefault(_identity(config, setting, layers), setting)
        except UserError as error:
            refused.append((setting.name, str(error)))
            continue
        values = (value for _, value in setting.options)
        places[len(layers.lora), len(layers.trained), setting.head_width, *values] = same
    if not distinct:
        told = "".join(f"\n  {name}: {reason}" for name, reason in refused)
        raise UserError(f"lora_rates and nfz_rates leave no plan in which a layer learns{told}")
    equal = len(grid) - len(distinct) - overlapping - idle - len(refused)
    settings = tuple(distinct.values())
    return Space(settings, places, len(grid), overlapping, idle, equal, tuple(refused))


def choose(config: SearchConfig, space: Space) -> list[Setting]:
    """The settings to try: all, or for random search as many as it tries. TPE takes its own."""
    if config.searcher != "random":
        return list(space.settings)
    order = np.random.default_rng(config.seed).permutation(len(space.settings))
    return [space.settings[number] for number in sorted(order[: config.trials])]


def _grid(config: SearchConfig) -> list[Setting]:
    others = [tuple(zip(config.values, v, strict=True)) for v in product(*config.values.values())]
    axes = product(config.lora_rates, config.nfz_rates, config.head_widths, others)
    return [Setting(lora, nfz, width, options) for lora, nfz, width, options in axes]


def _identity(config: SearchConfig, setting: Setting, layers: LayerPlan) -> str:
    """Equal exactly for settings that are the same training run."""
    trial = trial_config(config, setting).to_dict() | {"name": ""}
    trial["plan"] |= {"lora_rate": layers.lora, "nfz_rate": layers.trained}
    if not layers.lora:
        trial["plan"] |= {name.removeprefix("plan."): None for name in OF_LORA}
    return json.dumps(trial)


def trial_config(
    config: SearchConfig,
    setting: Setting,
    share: float = 1.0,
    repeat: int = 0,
    head: TrainConfig | None = None,
) -> TrainConfig:
    """The complete config of a trial: on a share of the base's rows, and with a repetition's seed.

    `head`: the run that it starts from, whose dropout it has unless that is an axis.

    Raises:
        UserError: the setting is no valid config.
    """
    of_head: dict[str, Any] = {}
    if head is not None:
        start = f"{config.heads_folder}/{head.name}"
        of_head = {"start_from": start, "head.dropout": head.head.dropout}
    return config.base.replace(
        {
            **of_head,
            **dict(setting.options),
            "name": trial_name(setting, share, repeat),
            "plan.lora_rate": setting.lora_rate,
            "plan.nfz_rate": setting.nfz_rate,
            "head.width": setting.head_width,
            "optim.share": share * config.base.optim.share,
            "seed": config.base.seed + repeat,
        }
    )


def trial_name(setting: Setting, share: float = 1.0, repeat: int = 0) -> str:
    """Of a trial and its folder."""
    part = f"-share{share:g}" if share < 1 else ""
    return f"{setting.name}{part}" + (f"-repeat{repeat}" if repeat else "")
