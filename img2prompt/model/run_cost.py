"""The cost of a training run, known before it starts: parameters, FLOP a picture, memory.

FLOP are counted as torch.utils.flop_counter does: a multiplication with its addition is 2; matrix
products, attention and convolutions count, element-wise work (about 1 %) does not. There is no
backward pass below the lowest layer that learns, and weight gradients only for what learns. The
shape of a tower has the formulas of its family (`TowerShape.cost`).

Activations are what eager autograd keeps for the backward pass; torch.compile keeps less.
"""

import itertools

from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.data.vectors import DIMENSIONS
from img2prompt.model.cost import FLOAT, HALF, Cost
from img2prompt.model.towers.base import TowerShape


def cost(
    shape: TowerShape,
    plan: PlanConfig,
    head: HeadConfig,
    *,
    half: bool,
    cached: bool = False,
) -> Cost:
    """Predict the cost of training a head on a tower of this shape under `plan`.

    `half`: matrix products in 16 bits by autocast, weights in float32. `cached`: features are read
    in place of pictures, so the tower neither runs nor is in memory (a probe). LoRA dropout, which
    keeps about `16nd` bytes a layer, is left out.

    Raises:
        UserError: rates of the plan that overlap.
    """
    total = _head(shape.width, head, half=half, below=not plan.frozen_tower)
    return total if cached else total + shape.cost(plan, half=half)


def _head(width: int, config: HeadConfig, *, half: bool, below: bool) -> Cost:
    sizes = [width, config.width, DIMENSIONS] if config.width else [width, DIMENSIONS]
    matrices = [a * b for a, b in itertools.pairwise(sizes)]
    learned = sum(matrices) + DIMENSIONS + 2 * config.width  # BatchNorm has two vectors
    needless = 0 if below else matrices[0]
    return Cost(
        parameters=learned,
        learned=learned,
        forward=2 * sum(matrices),
        backward=2 * (2 * sum(matrices) - needless),
        activations=sum((HALF if half else FLOAT) * size for size in sizes[:-1])
        + FLOAT * config.width  # BatchNorm's input
        + (FLOAT * config.width if half else 0),  # ReLU's output, before its 16-bit copy
        copies=HALF * sum(matrices) if half else 0,
    )
