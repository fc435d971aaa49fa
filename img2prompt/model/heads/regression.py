"""The regression head, from the tower's feature (B, D) to the prompt embedding (B, 384)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce

from img2prompt.config.train import HeadConfig
from img2prompt.data.vectors import DIMENSIONS


def build_head(width_in: int, config: HeadConfig) -> nn.Module:
    """Build a linear head, or the published wide one: Linear, BatchNorm, ReLU, Linear.

    Output: (B, 384), not normalised. The first Linear of a wide head has no bias: BatchNorm would
    subtract it again, so its gradient is rounding noise, which Adam would turn into steps.
    """
    if config.width == 0:
        return _last(width_in, config.dropout)
    return nn.Sequential(
        nn.Linear(width_in, config.width, bias=False),
        GlobalBatchNorm(config.width),
        nn.ReLU(),
        _last(config.width, config.dropout),
    )


def _last(width_in: int, dropout: float) -> nn.Linear:
    return DropoutLinear(width_in, dropout) if dropout else nn.Linear(width_in, DIMENSIONS)


class DropoutLinear(nn.Linear):
    """Dropout, then Linear, with the parameters of Linear alone.

    A head can therefore be loaded with another dropout: the tensors have the same names.
    """

    def __init__(self, width_in: int, dropout: float) -> None:
        super().__init__(width_in, DIMENSIONS)
        self.dropout = dropout

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C) to (B, 384)."""
        return super().forward(F.dropout(input, self.dropout, self.training))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"


class GlobalBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the batches of all workers together, in float32, on any device.

    torch's SyncBatchNorm does the same on GPUs only. Workers may have different numbers of rows:
    the result does not depend on how the global batch is divided.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C) of any float type; return (B, C) float32."""
        x = input.float()
        shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        with torch.autocast(x.device.type, enabled=False):
            return self._shared(x) if self.training and shared else super().forward(x)

    def _shared(self, x: Tensor) -> Tensor:
        everyone = dist.group.WORLD
        assert everyone is not None
        sums = all_reduce(torch.cat([x.sum(0), x.new_tensor([len(x)])]), "sum", everyone)
        rows = sums[-1].detach()
        mean = sums[:-1] / rows
        variance = all_reduce(((x - mean) ** 2).sum(0), "sum", everyone) / rows
        self._update(mean.detach(), variance.detach() * rows / (rows - 1))
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)
