"""Sizes of a model of timm, and what training one costs.

timm has hundreds of architectures, so the cost is not a formula: the model is built without
memory, on torch's meta device, and a training step of one picture is counted there.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from img2prompt.config.train import PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.cost import FLOAT, HALF, Cost
from img2prompt.model.plan import apply_plan
from img2prompt.model.towers.base import TowerShape


@dataclass(frozen=True, kw_only=True)
class TimmShape(TowerShape):
    """Sizes of a model of timm; a layer is a block."""

    architecture: str
    """Name of the model in timm."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Arguments of its constructor that its checkpoint names."""

    def cost(self, plan: PlanConfig, *, half: bool) -> Cost:
        """Count the cost on the meta device.

        Where products are in 16 bits, activations are taken as half of those in 32 bits.
        """
        counted = _count(self, plan)
        if not half:
            return counted
        return Cost(
            parameters=counted.parameters,
            learned=counted.learned,
            shortened=counted.parameters - counted.learned,
            forward=counted.forward,
            backward=counted.backward,
            activations=counted.activations // 2,
            copies=HALF * counted.learned,
        )


def create(architecture: str, arguments: Mapping[str, Any], classes: int = 0) -> nn.Module:
    """Create a model of timm with random weights; `classes`: width of its classifier, if any.

    Raises:
        UserError: timm is not installed, or does not know the architecture.
    """
    try:
        import timm  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            f"{architecture!r} is a model of timm, which cannot be imported ({error}): "
            "pip install 'img2prompt[timm]', with the torchvision of your torch"
        ) from error
    try:
        return timm.create_model(architecture, num_classes=classes, **arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"timm cannot create {architecture!r}: {error}") from error


@functools.lru_cache(maxsize=256)
def _count(shape: TimmShape, plan: PlanConfig) -> Cost:
    from img2prompt.model.towers.timm_models import TimmTower

    with torch.device("meta"):
        tower = TimmTower(shape, create(shape.architecture, dict(shape.arguments)), {})
        apply_plan(tower, plan)
        tower.train()
        pixels = torch.zeros(1, shape.size, shape.size, 3, dtype=torch.uint8)
    kept = _Kept(tower)
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            features = tower(pixels)
        forward = counter.get_total_flops()
        if features.requires_grad:
            features.sum().backward()
        backward = counter.get_total_flops() - forward
    tensors = list(tower.parameters())
    return Cost(
        parameters=sum(tensor.numel() for tensor in tensors),
        learned=sum(tensor.numel() for tensor in tensors if tensor.requires_grad),
        forward=forward,
        backward=backward,
        activations=sum(kept.sizes.values()),
    )


class _Kept:
    """Storages that the backward pass reads, without the model's own, and their bytes."""

    def __init__(self, model: nn.Module) -> None:
        self.sizes: dict[int, int] = {}
        self._own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._alive: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        """Take note of a saved tensor."""
        if (key := _storage(tensor)) not in self._own:
            self.sizes[key] = tensor.untyped_storage().nbytes() // tensor.element_size() * FLOAT
            self._alive.append(tensor)
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
