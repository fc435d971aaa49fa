"""The network of EfficientNet-Lite.

It is written out here, in place of the package efficientnet-lite-pytorch, whose only release is of
2020 and which fixes the picture size, prints when it loads, and needs a wrapper for all of this.
Features equal those of that package (a test compares them).

Normalisation uses the statistics of ImageNet in training too. They would otherwise be those of one
worker's rows, and depend on the number of workers.

Shapes: B pictures, C channels, H, W height and width in pixels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from img2prompt.model.towers.efficientnet_lite_shape import (
    BlockShape,
    ConvShape,
    EfficientNetLiteShape,
)


class FixedNorm(nn.Module):
    """BatchNorm with fixed statistics; scale and shift may learn."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3
        )


class ConvNorm(nn.Module):
    """Convolution, normalisation and, where the shape says so, ReLU6; padded as by TensorFlow."""

    def __init__(self, shape: ConvShape) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            shape.inputs,
            shape.outputs,
            shape.kernel,
            shape.stride,
            padding=shape.kernel // 2 if shape.stride == 1 else 0,
            groups=shape.groups,
            bias=False,
        )
        self.norm = FixedNorm(shape.outputs)
        self._relu = shape.relu
        self._kernel, self._stride = shape.kernel, shape.stride

    def forward(self, x: Tensor) -> Tensor:
        if self._stride > 1:
            left, right = self._padding(x.shape[3])
            top, bottom = self._padding(x.shape[2])
            x = functional.pad(x, (left, right, top, bottom))
        x = self.norm(self.conv(x))
        return functional.relu6(x) if self._relu else x

    def _padding(self, side: int) -> tuple[int, int]:
        """Zeros before and after a side: it becomes side / stride, rounded up."""
        reached = (-(-side // self._stride) - 1) * self._stride + self._kernel
        zeros = max(reached - side, 0)
        return zeros // 2, zeros - zeros // 2


class Block(nn.Sequential):
    """An inverted bottleneck: expand, filter each channel, project."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        for name, conv in shape.convolutions.items():
            self.add_module(name, ConvNorm(conv))
        self.residual = shape.residual

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return input + output if self.residual else output


class EfficientNetLite(nn.Module):
    """From pixels (B, 3, H, W) to features (B, C)."""

    def __init__(self, shape: EfficientNetLiteShape) -> None:
        super().__init__()
        self.stem = ConvNorm(shape.stem)
        self.blocks = nn.ModuleList([Block(block) for block in shape.blocks])
        self.head = ConvNorm(shape.head)
        self.recompute = False
        """Keep only the inputs of blocks for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        recompute = self.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.head(x).mean((2, 3))
