"""Sizes of an EfficientNet-Lite, and what training one costs.

The family is EfficientNet (arXiv 1905.11946) without squeeze-and-excitation, with ReLU6, and with a
stem and a head of one size for all members. Source:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite

A convolution with k x k weights from i to o channels in g groups, and an output of n pixels, has
`2 n k k i o / g` FLOP forward, the same for the gradient of its input and for that of its weights.
LoRA of rank r on a 1 x 1 convolution has `2 n r (i + o)` in each of these places.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from img2prompt.config.train import PlanConfig
from img2prompt.model.cost import FLOAT, HALF, Cost
from img2prompt.model.plan import layer_plan
from img2prompt.model.towers.base import TowerShape
from img2prompt.model.towers.block_cost import Learning

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel, stride of the first block, expansion and output channels of each stage."""
STEM, HEAD = 32, 1280
"""Channels of stem and head, which no coefficient scales."""


@dataclass(frozen=True, kw_only=True)
class ConvShape:
    """A convolution, the normalisation after it, and perhaps ReLU6."""

    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    relu: bool = True

    @property
    def weights(self) -> int:
        """Number of weights of the convolution; it has no bias."""
        return self.kernel**2 * self.inputs * self.outputs // self.groups


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """An inverted bottleneck (MBConv, arXiv 1801.04381)."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    expansion: int

    @property
    def residual(self) -> bool:
        """The input is added to the output."""
        return self.stride == 1 and self.inputs == self.outputs

    @property
    def convolutions(self) -> dict[str, ConvShape]:
        """Convolutions by name, in their order; a block without expansion has no `expand`."""
        wide = self.inputs * self.expansion
        expand = {"expand": ConvShape(inputs=self.inputs, outputs=wide)}
        return (expand if self.expansion > 1 else {}) | {
            "depthwise": ConvShape(
                inputs=wide, outputs=wide, kernel=self.kernel, stride=self.stride, groups=wide
            ),
            "project": ConvShape(inputs=wide, outputs=self.outputs, relu=False),
        }


@dataclass(frozen=True, kw_only=True)
class EfficientNetLiteShape(TowerShape):
    """Sizes of an EfficientNet-Lite; a layer is a block."""

    blocks: tuple[BlockShape, ...]

    @property
    def stem(self) -> ConvShape:
        """Convolution from pixels to the lowest block."""
        return ConvShape(inputs=3, outputs=STEM, kernel=3, stride=2)

    @property
    def head(self) -> ConvShape:
        """Convolution from the top block to the feature, before it is averaged over all pixels."""
        return ConvShape(inputs=self.blocks[-1].outputs, outputs=self.width)

    def cost(self, plan: PlanConfig, *, half: bool) -> Cost:
        layers = layer_plan(self.depth, plan.lora_rate, plan.nfz_rate)
        total = _Stack(self.size, half)
        total.add(self.stem, Learning(trained=plan.embeddings))
        for number, block in enumerate(self.blocks):
            lora, trained = number in layers.lora, number in layers.trained
            for conv in block.convolutions.values():
                adapted = lora and conv.kernel == 1
                total.add(conv, Learning.of(plan, trained=trained, lora=adapted))
        learned = not plan.frozen_tower
        total.add(self.head, Learning(trained=bool(layers.trained)), norm_trained=learned)
        return total.cost


def scaled_blocks(width: float, depth: float) -> Iterator[BlockShape]:
    """Yield the blocks, bottom to top, with channels scaled by `width` and repeats by `depth`."""
    inputs = STEM
    for number, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
        outer = number in (0, len(STAGES) - 1)
        outputs = _scaled_channels(channels, width)
        for repeat in range(repeats if outer else math.ceil(repeats * depth)):
            yield BlockShape(
                inputs=inputs,
                outputs=outputs,
                kernel=kernel,
                stride=stride if repeat == 0 else 1,
                expansion=expansion,
            )
            inputs = outputs


def _scaled_channels(channels: int, width: float) -> int:
    """Round to a multiple of 8, at least 8, and not below 90 % of the exact number."""
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


class _Stack:
    """Adds up convolutions from the bottom to the top."""

    def __init__(self, size: int, half: bool) -> None:
        self.cost = Cost()
        self._side = size
        self._half = half
        self._below = False
        """Something below learns, so inputs need gradients."""

    def add(self, conv: ConvShape, learning: Learning, *, norm_trained: bool = False) -> None:
        """Add a convolution and its norm.

        `norm_trained`: the norm learns even if the convolution does not.
        """
        self._side = math.ceil(self._side / conv.stride)
        trained, rank = learning.trained, learning.rank
        extra = rank * (conv.inputs + conv.outputs) + conv.outputs * learning.dora
        lora = rank * (conv.inputs + conv.outputs)
        learned = conv.weights * trained + 2 * conv.outputs * (norm_trained or trained) + extra
        back = self._below or learned > 0
        self.cost += Cost(
            parameters=conv.weights + 2 * conv.outputs + extra,
            learned=learned,
            shortened=conv.weights if self._half and not trained else 0,
            forward=2 * self._side**2 * (conv.weights + lora),
            backward=self._backward(conv, trained, rank),
            activations=self._activations(conv, learning) if back else 0,
            copies=HALF * (conv.weights * trained + lora) if self._half else 0,
        )
        self._below = back

    def _backward(self, conv: ConvShape, trained: bool, rank: int) -> int:
        weights = conv.weights * trained + rank * (conv.inputs + conv.outputs)
        inputs = (conv.weights + rank * conv.inputs) * self._below + rank * conv.outputs
        return 2 * self._side**2 * (weights + inputs)

    def _activations(self, conv: ConvShape, learning: Learning) -> int:
        """Inputs of the convolution, of LoRA's matrices, of the norm and of ReLU6.

        A convolution with stride keeps its input with the padding. Autocast makes a copy of the
        input for LoRA, which peft reads as float32.
        """
        padded = (self._side - 1) * conv.stride + conv.kernel if conv.stride > 1 else self._side
        own, rank = self._below or learning.trained, learning.rank
        inputs = own + (rank > 0 and (self._half or not own))
        outputs = conv.outputs * (1 + conv.relu + 2 * learning.dora) + rank
        element = HALF if self._half else FLOAT
        return element * (conv.inputs * padded**2 * inputs + self._side**2 * outputs)
