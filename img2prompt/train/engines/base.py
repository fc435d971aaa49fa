"""What an engine is: a model that learns, whatever runs its backward pass and step."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from img2prompt.train.checkpoint import EngineState

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps for each tensor."""


class Engine(Protocol):
    """A model that learns. Every worker calls every method, in the same order."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    def forward(self, inputs: Tensor) -> Tensor: ...
    def backward(self, loss: Tensor) -> None:
        """Add one part's gradients; they are averaged over parts and workers.

        `loss` is the mean over the part's rows, by how much more rows it has than the average part.
        """
        ...

    def step(self) -> None:
        """After the backward passes of all parts of a global batch."""
        ...

    def state(self) -> EngineState:
        """A copy that later steps leave alone; equal on all workers."""
        ...

    def load(self, state: EngineState) -> None:
        """Go on from optimiser, schedule and scale; the module was given its tensors before."""
        ...


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that require gradients, by name."""
    return [(name, tensor) for name, tensor in module.named_parameters() if tensor.requires_grad]


def load_schedule(schedule: LRScheduler, state: Mapping[str, Any]) -> None:
    """Go on where a saved schedule was; the rates are those of this config, which may be another.

    LambdaLR would take over the rates of the saved one.
    """
    assert isinstance(schedule, LambdaLR)
    schedule.last_epoch, schedule._step_count = state["last_epoch"], state["_step_count"]
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    rates = [peak * now for peak, now in zip(schedule.base_lrs, factors, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def copy_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, in memory of its own."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
