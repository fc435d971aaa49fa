"""AdamW with separate rates for tower and head, and their schedule."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from img2prompt.config.train import OptimConfig
from img2prompt.model.towers.base import Tower


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW (arXiv 1711.05101) over the trainable tensors, in groups by rate and decay."""
    return torch.optim.AdamW(parameter_groups(model, config), betas=(0.9, 0.98), eps=1e-8)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Return groups `{tower, head} x {decay, no decay}`; vectors and scalars are not decayed.

    With `config.layer_decay`, each layer of the tower has groups of its own. The layer that is
    `below` layers under the top one learns at `lr * layer_decay ** below`.
    """
    below = layers_below_top(model) if config.layer_decay < 1 else {}
    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            group = name.startswith("head."), below.get(name, 0), tensor.ndim > 1
            groups.setdefault(group, []).append(tensor)
    return [
        {
            "params": tensors,
            "lr": config.head_lr if is_head else config.lr * config.layer_decay**depth,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (is_head, depth, decays), tensors in sorted(groups.items(), key=lambda item: item[0])
    ]


def layers_below_top(model: nn.Module) -> dict[str, int]:
    """Return for each tensor of a tower's layers and embeddings how far below the top layer it is.

    Embeddings are one step below the lowest layer. Other tensors, such as the final norm and a
    pooling head, are left out.
    """
    depths: dict[int, int] = {}
    for tower in (part for part in model.modules() if isinstance(part, Tower)):
        for number, layer in enumerate(reversed(tower.layers)):
            depths |= {id(tensor): number for tensor in layer.parameters()}
        for module in tower.embeddings:
            depths |= {id(tensor): len(tower.layers) for tensor in module.parameters()}
    return {name: depths[id(t)] for name, t in model.named_parameters() if id(t) in depths}


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
