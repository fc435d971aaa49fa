"""The number type of matrix products."""

import torch
from torch import nn

from img2prompt.errors import UserError


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of matrix products.

    `auto` is bfloat16 where the hardware has it, else float32.

    Raises:
        UserError: float16 without a GPU.
    """
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
        return torch.bfloat16 if has_bf16 else torch.float32
    if precision == "fp16" and device.type != "cuda":
        raise UserError("engine.precision is 'fp16'; allowed without a GPU: auto, fp32 or bf16")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def shorten_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep matrices that do not learn in the type in which autocast multiplies them.

    Autocast would cast them again in every pass, to the same numbers.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            matrix = part.weight
        elif isinstance(part, nn.MultiheadAttention):
            matrix = part.in_proj_weight
        else:
            continue
        if not matrix.requires_grad:
            part.to(dtype)
