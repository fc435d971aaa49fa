"""Count what torch computes and keeps, to compare it with predicted costs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count


def _convolution_backward(
    grad: torch.Size, x: torch.Size, w: torch.Size, *args, out_shape, **_
) -> int:
    """FLOP of both gradients; torch's own count of weight gradients ignores groups."""
    mask = args[-1]
    each = 2 * grad[0] * grad[2] * grad[3] * w[0] * w[1] * w[2] * w[3]
    return each * (bool(mask[0]) + bool(mask[1]))


FLOP = {  # torch counts the attention kernels of GPUs alone; the CPU's makes the same products
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
    torch.ops.aten.convolution_backward: _convolution_backward,
}
"""Custom mapping of FlopCounterMode."""


@contextmanager
def kept_by_autograd(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of each storage that the backward pass will read, the model's own left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
