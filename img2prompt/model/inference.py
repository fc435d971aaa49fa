"""Put a model on a device for predictions."""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn

from img2prompt.model.precision import compute_dtype

Module = TypeVar("Module", bound=nn.Module)


def prepare_for_inference(
    module: Module, tower: nn.Module | None, device: torch.device, precision: str = "auto"
) -> Module:
    """Move a module to a device, in evaluation mode.

    `tower`, the module itself or a part of it, gets the type that `precision` asks for; autocast
    would cast its weights again for each batch. All else, such as a head, stays in float32.
    """
    module.to(device).eval()
    if tower is not None:
        tower.to(compute_dtype(precision, device))
    return module


def compile_for_batches(module: nn.Module, device: torch.device) -> None:
    """Compile a module on a GPU, for many batches of one shape; every other shape compiles again.

    Activations such as CLIP's QuickGELU are several memory-bound kernels unless they are fused.
    Fusing needs a C compiler; a machine without one runs the plain model.
    """
    if device.type == "cuda":
        torch._dynamo.config.suppress_errors = True
        module.compile(dynamic=False)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread in torch, so that sums are equal to the last bit on any number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
