"""LoRA on a tower's matrices by peft (arXiv 2106.09685), added and merged."""

from collections.abc import Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d as LoraConv2d
from peft.tuners.lora import Linear as LoraLinear

from img2prompt.config.train import PlanConfig
from img2prompt.model.towers.base import Tower


def add_lora(tower: Tower, layers: Sequence[int], config: PlanConfig) -> None:
    """Add LoRA matrices to these layers, in place; what learned before still does.

    `y = Wx + b + scale * up(down(dropout(x)))` on the modules that the tower names (attention
    projections, 1 x 1 convolutions), with matrices down (rank, D) and up (D, rank), without biases.
    The up-matrix is zero, so the tower's output is unchanged at the start. The down-matrix is
    Kaiming uniform, or normal with deviation 1 / rank in the published form, whose scale is 1 and
    which has no dropout. They are drawn from torch's global generator, so workers with equal seeds
    draw equal ones.
    """
    learning = {name for name, tensor in tower.named_parameters() if tensor.requires_grad}
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_rank * config.lora_scale,  # type: ignore[arg-type]  # floats work
        lora_dropout=config.lora_dropout,
        init_lora_weights="gaussian" if config.lora_init == "published" else True,
        bias="none",
        target_modules=[name for layer in layers for name in tower.lora_targets(layer)],
    )
    inject_adapter_in_model(lora, tower)
    tower.train(tower.training)  # peft's parts begin in training mode, with dropout
    for name, tensor in tower.named_parameters():  # peft froze all but its own tensors
        if name in learning:
            tensor.requires_grad_(True)


@torch.no_grad()
def merge_lora(tower: Tower) -> None:
    """Add every LoRA update to its matrix, in place, so that the tower is a plain one again.

    Outputs in evaluation mode stay the same, up to the rounding of float32.
    """
    for name, part in list(tower.named_modules()):
        if isinstance(part, LoraLinear | LoraConv2d):
            part.merge()
            tower.set_submodule(name, part.get_base_layer())
