"""AdamW with separate rates for tower and head, and their schedule."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from img2prompt.config.train import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW (arXiv 1711.05101) over the trainable tensors, in groups by rate and decay."""
    return torch.optim.AdamW(parameter_groups(model, config), betas=(0.9, 0.98), eps=1e-8)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Return groups `{tower, head} x {decay, no decay}`; vectors and scalars are not decayed."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            groups.setdefault((name.startswith("head."), tensor.ndim > 1), []).append(tensor)
    return [
        {
            "params": tensors,
            "lr": config.head_lr if is_head else config.lr,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (is_head, decays), tensors in sorted(groups.items())
    ]


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the factor on the peak rate: linear warm-up, then half a cosine down to 0.

    `step` counts from 0, `warmup` is the warm-up's share of all steps. The warm-up ends at 1, and
    the last step's factor is above 0.
    """
    rising = math.ceil(steps * warmup - 1e-9)  # 100 * 0.07 = 7.000000000000001
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimConfig, steps: int) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: rate_factor(step, steps, config.warmup))
