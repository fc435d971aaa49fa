"""The space of a search: its distinct settings, and the complete config of each.

Rates are searched in whole layers, and settings that train the same layers in the same way count as
one. A 0.05 grid of 441 points over 24 layers has 243 valid plans with `int(24 * rate)` layers (the
one in which no layer learns is the probe). The rank of LoRA has no effect where no layer has LoRA.
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

LORA_FIELDS = tuple(f"plan.{f.name}" for f in fields(PlanConfig) if f.name.startswith("lora_"))[1:]
"""Fields without effect where no layer has LoRA."""


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
        """Name of its trials and their folders."""
        plan = f"lora{self.lora_rate:g}-nfz{self.nfz_rate:g}-head{self.head_width}"
        return "-".join([plan, *(f"{name}{_name_part(value)}" for name, value in self.options)])

    def to_dict(self) -> dict[str, Any]:
        """Return the values of all axes by name."""
        own = {name: getattr(self, name) for name in ("lora_rate", "nfz_rate", "head_width")}
        return own | dict(self.options)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Setting":
        own = {name: values[name] for name in ("lora_rate", "nfz_rate", "head_width")}
        return cls(**own, options=tuple((n, v) for n, v in values.items() if n not in own))


def _name_part(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "_")


@dataclass(frozen=True)
class Space:
    """The settings of a search, and how many points of the grid each check left out."""

    settings: tuple[Setting, ...]
    """Distinct settings, in the order of the axes."""
    by_coordinates: Mapping[tuple[Any, ...], Setting]
    """Settings by (layers with LoRA, trained layers, head width, values of the other axes); a
    setting may have several coordinates."""
    points: int
    """Points of the whole grid."""
    overlapping: int
    """Points with more LoRA and trained layers than the tower has."""
    idle: int
    """Points in which no layer learns: these are the probe."""
    equal: int
    """Points that train in the same way as an earlier one."""
    refused: tuple[tuple[str, str], ...] = ()
    """Name and reason of points that are not valid configs."""

    def only(self, settings: Collection[Setting]) -> "Space":
        """Return the space with these settings only."""
        return replace(
            self,
            settings=tuple(setting for setting in self.settings if setting in settings),
            by_coordinates={
                at: setting for at, setting in self.by_coordinates.items() if setting in settings
            },
        )


def space_of(config: SearchConfig, depth: int) -> Space:
    """Build the space for a tower of `depth` layers.

    Raises:
        UserError: no point of the grid is a valid setting.
    """
    distinct: dict[str, Setting] = {}
    by_coordinates: dict[tuple[Any, ...], Setting] = {}
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
        at = len(layers.lora), len(layers.trained), setting.head_width, *values
        by_coordinates[at] = same
    if not distinct:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in refused)
        raise UserError(f"lora_rates and nfz_rates leave no plan in which a layer learns{reasons}")
    equal = len(grid) - len(distinct) - overlapping - idle - len(refused)
    settings = tuple(distinct.values())
    return Space(settings, by_coordinates, len(grid), overlapping, idle, equal, tuple(refused))


def choose(config: SearchConfig, space: Space) -> list[Setting]:
    """Return the settings to try: `trials` of them for random search, else all.

    TPE picks from all of them while it runs.
    """
    if config.searcher != "random":
        return list(space.settings)
    order = np.random.default_rng(config.seed).permutation(len(space.settings))
    return [space.settings[number] for number in sorted(order[: config.trials])]


def _grid(config: SearchConfig) -> list[Setting]:
    others = [tuple(zip(config.values, v, strict=True)) for v in product(*config.values.values())]
    axes = product(config.lora_rates, config.nfz_rates, config.head_widths, others)
    return [Setting(lora, nfz, width, options) for lora, nfz, width, options in axes]


def _identity(config: SearchConfig, setting: Setting, layers: LayerPlan) -> str:
    """Return a text that is equal for two settings exactly if they train in the same way."""
    trial = trial_config(config, setting).to_dict() | {"name": ""}
    trial["plan"] |= {"lora_rate": layers.lora, "nfz_rate": layers.trained}
    if not layers.lora:
        trial["plan"] |= {name.removeprefix("plan."): None for name in LORA_FIELDS}
    return json.dumps(trial)


def trial_config(
    config: SearchConfig,
    setting: Setting,
    share: float = 1.0,
    repeat: int = 0,
    head: TrainConfig | None = None,
) -> TrainConfig:
    """Return the complete config of a trial.

    Args:
        config: The search.
        setting: Values of its axes.
        share: Share of the base's training rows.
        repeat: Number of the repetition; added to the base's seed.
        head: Run that it starts from. Its dropout is used unless dropout is an axis.

    Raises:
        UserError: the setting is not a valid config.
    """
    head_fields: dict[str, Any] = {}
    if head is not None:
        start = f"{config.heads_folder}/{head.name}"
        head_fields = {"start_from": start, "head.dropout": head.head.dropout}
    return config.base.replace(
        {
            **head_fields,
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
    """Return the name of a trial and its folder."""
    part = f"-share{share:g}" if share < 1 else ""
    return f"{setting.name}{part}" + (f"-repeat{repeat}" if repeat else "")
