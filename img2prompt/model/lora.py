"""LoRA on a tower's matrices by peft (arXiv 2106.09685) and its variants, added and merged."""

from collections.abc import Iterator, Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d as LoraConv2d
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from img2prompt.config.train import PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.pissa import keep_start
from img2prompt.model.towers.base import Tower


def add_lora(tower: Tower, layers: Sequence[int], config: PlanConfig) -> None:
    """Add LoRA matrices to these layers, in place; what learned before still does.

    `y = Wx + b + scale * up(down(dropout(x)))` on the modules that the tower names (attention
    projections, 1 x 1 convolutions), with matrices down (rank, D) and up (D, rank), without biases.
    The tower's output is unchanged at the start: the up-matrix is zero, or, with PiSSA, what the
    matrices add is taken from W. The down-matrix is Kaiming uniform, or normal with deviation
    1 / rank in the published form, whose scale is 1 and which has no dropout. They are drawn from
    torch's global generator, so workers with equal seeds draw equal ones.

    Raises:
        UserError: PiSSA for a tower of convolutions, or with a rank above the size of a matrix.
    """
    names = [name for layer in layers for name in tower.lora_targets(layer, config.lora_targets)]
    if config.lora_init == "pissa":
        _check_pissa(tower, names, config.lora_rank)
    learning = {name for name, tensor in tower.named_parameters() if tensor.requires_grad}
    inject_adapter_in_model(_peft_config(names, config), tower)
    tower.train(tower.training)  # peft's parts begin in training mode, with dropout
    for name, tensor in tower.named_parameters():  # peft froze all but its own tensors
        if name in learning:
            tensor.requires_grad_(True)
    if config.lora_init == "pissa":
        for _, part in _adapted(tower):
            keep_start(part)


@torch.no_grad()
def merge_lora(tower: Tower) -> None:
    """Add every LoRA update to its matrix, in place, so that the tower is a plain one again.

    Outputs in evaluation mode stay the same, up to the rounding of float32.
    """
    for name, part in list(_adapted(tower)):
        part.merge()
        tower.set_submodule(name, part.get_base_layer())


def _peft_config(names: list[str], config: PlanConfig) -> LoraConfig:
    inits = {"kaiming": True, "published": "gaussian", "pissa": "pissa"}
    alpha = config.lora_scale * (1 if config.lora_rslora else config.lora_rank)
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # floats work
        lora_dropout=config.lora_dropout,
        init_lora_weights=inits[config.lora_init],  # type: ignore[arg-type]
        use_rslora=config.lora_rslora,
        use_dora=config.lora_dora,
        bias="none",
        target_modules=names,
    )


def _adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear | LoraConv2d]]:
    for name, part in model.named_modules():
        if isinstance(part, LoraLinear | LoraConv2d):
            yield name, part


def _check_pissa(tower: Tower, names: Sequence[str], rank: int) -> None:
    for name in names:
        part = tower.get_submodule(name)
        if not isinstance(part, nn.Linear):
            raise UserError(
                f"plan.lora_init is 'pissa', and LoRA of a {tower.family} tower goes on "
                "convolutions; allowed there: kaiming or published"
            )
        most = min(part.in_features, part.out_features)
        if rank > most:
            raise UserError(
                f"plan.lora_rank is {rank}; allowed with plan.lora_init pissa: at most {most}, the "
                f"smaller side of {name}"
            )
