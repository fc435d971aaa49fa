"""The number type of matrix products."""

import torch

from img2prompt.errors import UserError


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of matrix products; `auto` is bfloat16 where the hardware has it, else float32."""
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
        return torch.bfloat16 if has_bf16 else torch.float32
    if precision == "fp16" and device.type != "cuda":
        raise UserError("engine.precision is 'fp16'; allowed without a GPU: auto, fp32 or bf16")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
