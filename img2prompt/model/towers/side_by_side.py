"""Several frozen towers as one: their features side by side, for a probe.

A picture has the side of the largest tower, and is resized to that of each. Each tower normalises
the pixels in its own units. A probe in closed form standardises each feature by its own mean and
deviation, so towers with features of any scale stand beside each other.

Shapes: B pictures, S largest side in pixels, D sum of the towers' widths.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Literal, NoReturn, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import LoraTargets, PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.cost import Cost
from img2prompt.model.towers.base import Tower, TowerShape


@dataclass(frozen=True, kw_only=True)
class SideBySideShape(TowerShape):
    """Sizes of several towers together: sums of layers and widths, and the largest side."""

    members: tuple[TowerShape, ...]

    @classmethod
    def of(cls, members: Sequence[TowerShape]) -> Self:
        """Combine the shapes of towers, in their order."""
        return cls(
            depth=sum(member.depth for member in members),
            width=sum(member.width for member in members),
            size=max(member.size for member in members),
            members=tuple(members),
        )

    def cost(self, plan: PlanConfig, *, half: bool) -> Cost:
        assert plan.frozen_tower, "towers side by side are for probes"
        return reduce(add, [member.cost(plan, half=half) for member in self.members])


class SideBySideTower(Tower):
    """Towers that see the same pictures, each at its own side. No layer may learn."""

    family = "towers side by side"

    def __init__(self, members: Sequence[Tower]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._shape = SideBySideShape.of([member.shape for member in members])
        stamps = [[member.base_fingerprint, member.shape.size] for member in members]
        self.base_fingerprint = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]

    @property
    def towers(self) -> list[Tower]:
        return [member for member in self.members if isinstance(member, Tower)]

    @property
    def shape(self) -> SideBySideShape:
        return self._shape

    @classmethod
    def load(cls, folder: Path, config: TowerConfig) -> NoReturn:
        raise UserError(_several(folder))

    @classmethod
    def read_shape(cls, folder: Path, config: TowerConfig) -> NoReturn:
        raise UserError(_several(folder))

    @property
    def layers(self) -> nn.ModuleList:
        return nn.ModuleList(layer for tower in self.towers for layer in tower.layers)

    @property
    def embeddings(self) -> list[nn.Module]:
        return [module for tower in self.towers for module in tower.embeddings]

    @property
    def final_norm(self) -> nn.Module:
        return nn.ModuleList(tower.final_norm for tower in self.towers)

    def lora_targets(self, layer: int, targets: LoraTargets) -> NoReturn:
        raise UserError("tower.beside names more towers, and LoRA adapts one: leave it empty")

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (B, S, S, 3) as float32 (B, 3, S, S), 0 to 255: each tower has its units."""
        return pixels.permute(0, 3, 1, 2).float()

    def encode(self, normalised: Tensor) -> Tensor:
        """Features float32 (B, D) of pixels (B, 3, S, S), 0 to 255."""
        features = []
        for tower in self.towers:
            pixels = _resized(normalised, tower.shape.size).permute(0, 2, 3, 1)
            features.append(tower.encode(tower.normalise(pixels)).float())
        return torch.cat(features, dim=1)

    def recompute_activations(self) -> None:
        for tower in self.towers:
            tower.recompute_activations()

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write a checkpoint of each tower into the folders `1`, `2`, ... in their order."""
        for number, tower in enumerate(self.towers, start=1):
            path = Path(folder) / str(number)
            path.mkdir()
            tower.save(path, dtype)

    def save_processor(self, folder: str | Path, fit: Literal["crop", "whole"]) -> None:
        for number, tower in enumerate(self.towers, start=1):
            tower.save_processor(Path(folder) / str(number), fit)


def _resized(pixels: Tensor, size: int) -> Tensor:
    """Resize (B, 3, S, S) to a smaller side by bicubic filters that average what they cover."""
    if pixels.shape[-1] == size:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)


def _several(folder: Path) -> str:
    return f"{folder} has several towers: name one with tower.weights and others with tower.beside"
