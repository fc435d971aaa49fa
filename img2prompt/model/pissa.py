"""The base of matrices with PiSSA (arXiv 2404.02948), wherever a run resumes.

PiSSA moves the largest singular values of a matrix W into its LoRA matrices and leaves the rest as
base: `W = base + scale * up @ down`. The first pair of LoRA matrices decides the base. Singular
vectors are not the same on every machine, so buffers keep that pair, and checkpoints hold them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

START = ("start_down", "start_up")
"""Names of the buffers: the first LoRA matrices, (rank, D) and (D, rank)."""
ADAPTER = "default"
"""Name that peft gives to LoRA matrices."""


def keep_start(part: Any) -> None:
    """Keep the first LoRA matrices of a layer that peft has just adapted."""
    matrices = part.lora_A[ADAPTER].weight, part.lora_B[ADAPTER].weight
    for name, matrix in zip(START, matrices, strict=True):
        part.register_buffer(name, matrix.detach().clone())


@torch.no_grad()
def rebase(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every matrix with PiSSA the base that belongs to the first LoRA matrices in `state`.

    Bases stay as they are, bit by bit, where these equal those of the model. They differ by signs
    or rounding when `state` is from another machine; outputs are then equal up to rounding.
    """
    for name, part in model.named_modules():
        if hasattr(part, START[0]):
            _rebase_layer(part, [state[f"{name}.{start}"] for start in START])


def _rebase_layer(part: Any, wanted: list[Tensor]) -> None:
    own = [getattr(part, start) for start in START]
    if not all(torch.equal(a, b.to(a)) for a, b in zip(own, wanted, strict=True)):
        weight = part.get_base_layer().weight
        (down, up), (other_down, other_up) = own, (tensor.to(own[0]) for tensor in wanted)
        weight.add_(part.scaling[ADAPTER] * (up @ down - other_up @ other_down))
