"""The engine protocol: a model in training, whatever runs its backward pass and step."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from img2prompt.train.checkpoint import EngineState

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of each tensor."""


class Engine(Protocol):
    """A model in training. Every worker calls every method, in the same order."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    def forward(self, inputs: Tensor) -> Tensor: ...
    def backward(self, loss: Tensor) -> None:
        """Add one part's gradients; they are averaged over parts and workers.

        `loss` is the mean over the part's rows, times its rows over those of an average part.
        """
        ...

    def step(self) -> None:
        """Make an optimiser step, after the backward passes of all parts of a global batch."""
        ...

    def state(self) -> EngineState:
        """Return a copy that later steps do not change; equal on all workers."""
        ...

    def load(self, state: EngineState) -> None:
        """Restore optimiser, schedule and loss scale; the module has its tensors already."""
        ...


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that require gradients, with their names."""
    return [(name, tensor) for name, tensor in module.named_parameters() if tensor.requires_grad]


def load_schedule(schedule: LRScheduler, state: Mapping[str, Any]) -> None:
    """Restore a schedule's step, with the peak rates of this config, which may be a new one.

    `LambdaLR.load_state_dict` would restore the saved peak rates too.
    """
    assert isinstance(schedule, LambdaLR)
    schedule.last_epoch, schedule._step_count = state["last_epoch"], state["_step_count"]
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    rates = [peak * now for peak, now in zip(schedule.base_lrs, factors, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def copy_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, in memory of their own."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
