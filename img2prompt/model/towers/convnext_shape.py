"""Sizes of a ConvNeXt V2, and what training one costs.

A convolution with k x k weights from i to o channels in g groups, and an output of n pixels, has
`2 n k k i o / g` FLOP forward, the same for the gradient of its input and for that of its weights.
Under autocast the whole stream of features is in 16 bits, as it begins with a convolution.
"""

from dataclasses import dataclass

from img2prompt.config.train import PlanConfig
from img2prompt.model.cost import HALF, Cost
from img2prompt.model.plan import layer_plan
from img2prompt.model.towers.base import TowerShape
from img2prompt.model.towers.block_cost import (
    Learning,
    Matrix,
    activation_copies,
    element,
    matrix_cost,
    norm_cost,
)

KERNEL = 7
"""Side of the depthwise convolution of a block."""
EXPANSION = 4
"""Hidden channels of a block for each of its own."""


@dataclass(frozen=True, kw_only=True)
class ConvNextShape(TowerShape):
    """Sizes of a ConvNeXt V2; a layer is a block, with the downsampling before it."""

    patch: int
    """Side of the pixels that the stem takes together."""
    stages: tuple[tuple[int, int], ...]
    """Blocks and channels of each stage; a stage has half the side of the one below."""
    activation: str
    """Name of a block's activation, as transformers spells it."""

    def cost(self, plan: PlanConfig, *, half: bool) -> Cost:
        layers = layer_plan(self.depth, plan.lora_rate, plan.nfz_rate)
        learned = not plan.frozen_tower
        side, below, number = self.size // self.patch, plan.embeddings, 0
        channels = self.stages[0][1]
        stem = _Conv(3, channels, self.patch)
        total = stem.cost(side, trained=below, below=False, half=half)
        size = element(half)
        total += norm_cost(channels, side**2, learned=below, back=below, size=size)
        total += norm_cost(self.width, 1, learned=learned, back=learned, size=size)
        for stage, (blocks, outputs) in enumerate(self.stages):
            for block in range(blocks):
                lora, trained = number in layers.lora, number in layers.trained
                if stage > 0 and block == 0:
                    total += _downsampling(
                        channels, outputs, side, trained=trained, below=below, half=half
                    )
                    side, channels, below = side // 2, outputs, below or trained
                learning = Learning.of(plan, trained=trained, lora=lora)
                total += self._block(channels, side, learning, below=below, half=half)
                below, number = below or learning.learns, number + 1
        return total

    def _block(
        self, channels: int, side: int, learning: Learning, *, below: bool, half: bool
    ) -> Cost:
        """Depthwise convolution, LayerNorm, an MLP with global response normalisation."""
        hidden, pixels, trained = EXPANSION * channels, side**2, learning.trained
        back, normed = below or learning.learns, below or trained
        depthwise = _Conv(channels, channels, KERNEL, groups=channels)
        up = Matrix(inputs=channels, outputs=hidden)
        down = Matrix(inputs=hidden, outputs=channels)
        total = depthwise.cost(side, trained=trained, below=below, half=half)
        total += norm_cost(channels, pixels, learned=trained, back=normed, size=element(half))
        total += matrix_cost(up, pixels, learning, below=normed, half=half)
        total += _response_norm(hidden, pixels, trained=trained, back=back, half=half)
        total += matrix_cost(down, pixels, learning, below=back, half=half)
        inputs = (channels + hidden) * learning.learns
        activation = hidden * activation_copies(self.activation) * back
        return total + Cost(activations=element(half) * pixels * (inputs + activation))


@dataclass(frozen=True)
class _Conv:
    inputs: int
    outputs: int
    kernel: int
    groups: int = 1

    def cost(self, side: int, *, trained: bool, below: bool, half: bool) -> Cost:
        """Cost of the convolution with an output of side x side; it keeps its input."""
        weights = self.kernel**2 * self.inputs * self.outputs // self.groups
        own = weights + self.outputs
        product = 2 * side**2 * weights
        strided = 1 if self.groups > 1 else self.kernel
        kept = element(half) * self.inputs * (side * strided) ** 2
        return Cost(
            parameters=own,
            learned=own if trained else 0,
            shortened=own if half and not trained else 0,
            forward=product,
            backward=product * (trained + below),
            activations=kept if trained or below else 0,
            copies=HALF * weights if half and trained else 0,
        )


def _downsampling(
    inputs: int, outputs: int, side: int, *, trained: bool, below: bool, half: bool
) -> Cost:
    """LayerNorm, and a convolution that halves the side."""
    back = trained or below
    norm = norm_cost(inputs, side**2, learned=trained, back=back, size=element(half))
    conv = _Conv(inputs, outputs, 2).cost(side // 2, trained=trained, below=back, half=half)
    return norm + conv


def _response_norm(hidden: int, pixels: int, *, trained: bool, back: bool, half: bool) -> Cost:
    """Global response normalisation (arXiv 2301.00808): channels compete by their norms."""
    norms = 2 * hidden  # of channels, and divided by their mean
    kept = element(half) * (hidden * pixels * (1 + trained) + norms)
    return Cost(
        parameters=2 * hidden,
        learned=2 * hidden if trained else 0,
        activations=kept if back else 0,
    )
