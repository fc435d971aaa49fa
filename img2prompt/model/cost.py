"""The cost of a training run, known before it starts: parameters, FLOP a picture, memory.

FLOP are counted as torch.utils.flop_counter does: a multiplication with its addition is 2; matrix
products, attention and the patch convolution count, element-wise work (about 1 %) does not. There
is no backward pass below the lowest layer that learns, and weight gradients only for what learns.

Per layer, with n tokens of width d, an MLP of width f and LoRA of rank r:

- forward `8ndd + 4ndf + 4nnd`, with LoRA `16ndr` more;
- backward: attention `10nnd` (it computes its scores again: FlashAttention, arXiv 2205.14135), the
  input gradients `8ndd + 4ndf` (`2ndd + 4ndf` in the lowest layer that learns by LoRA), the weight
  gradients of a trained layer `8ndd + 4ndf`, LoRA's own `32ndr` (`26ndr` in the lowest).

A pooling head that attends with one query to n tokens: forward `4ndd + 4dd + 4df + 4nd`.

Activations are what eager autograd keeps for the backward pass; torch.compile keeps less.
"""

import itertools
from dataclasses import astuple, dataclass

from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.data.vectors import DIMENSIONS
from img2prompt.model.plan import layer_plan
from img2prompt.model.towers.base import TowerShape

FLOAT = 4
"""Bytes of a float32: weights, gradients, AdamW's moments and the residual stream."""
HALF = 2
"""Bytes of a bfloat16 or float16."""


@dataclass(frozen=True)
class Cost:
    """Parameters, FLOP of one picture, and bytes of memory; activations are of one picture."""

    parameters: int = 0
    learned: int = 0
    """Parameters that learn."""
    shortened: int = 0
    """Parameters that are kept in 16 bits: frozen matrices and their biases."""
    forward: int = 0
    """FLOP."""
    backward: int = 0
    """FLOP."""
    activations: int = 0
    copies: int = 0
    """16-bit copies of learning matrices, which autocast keeps until the backward pass is over."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def weights(self) -> int:
        """Bytes, with the copies."""
        long = self.parameters - self.shortened
        return FLOAT * long + HALF * self.shortened + self.copies

    @property
    def gradients(self) -> int:
        """Bytes."""
        return FLOAT * self.learned

    @property
    def optimizer(self) -> int:
        """Bytes of AdamW's two moments."""
        return 2 * FLOAT * self.learned

    def memory(
        self, rows: int, workers: int = 1, zero_stage: int = 0, averages: int = 0
    ) -> dict[str, int]:
        """Bytes in one of `workers` by purpose, when it takes `rows` pictures at once.

        `averages`: averages of the learned weights; validating one takes a second copy of them.
        ZeRO (arXiv 1910.02054) divides the optimiser's state among the workers from stage 1 on,
        gradients from 2, weights in 3.
        """
        parts = [workers if zero_stage >= stage else 1 for stage in (1, 2, 3)]
        return {
            "weights": self.weights // parts[2],
            "gradients": self.gradients // parts[1],
            "optimiser": self.optimizer // parts[0],
            **({"averaged weights": FLOAT * self.learned * (averages + 1)} if averages else {}),
            f"activations of {rows} rows": rows * self.activations,
        }

    def describe(self, rows: int, workers: int = 1, zero_stage: int = 0, averages: int = 0) -> str:
        """One line with parameters, FLOP, and the memory of one worker."""
        memory = self.memory(rows, workers, zero_stage, averages)
        parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in memory.items())
        both = self.forward + self.backward
        return (
            f"{self.learned / 1e6:.2f}M of {self.parameters / 1e6:.2f}M parameters learn "
            f"({self.learned / self.parameters:.1%}); GFLOP a row: {self.forward / 1e9:.4g} "
            f"forward, {both / 1e9:.4g} with backward; about {sum(memory.values()) / 1e9:.3g} GB a "
            f"worker ({parts})"
        )


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
    return total if cached else total + _tower(shape, plan, half=half)


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


def _tower(shape: TowerShape, plan: PlanConfig, *, half: bool) -> Cost:
    layers = layer_plan(shape.depth, plan.lora_rate, plan.nfz_rate)
    total = _embeddings(shape, plan, half=half) + _final_norm(shape, learned=not plan.frozen_tower)
    if shape.pooling == "attention":
        learned, below = bool(layers.trained), not plan.frozen_tower
        total += _pooling_head(shape, learned=learned, below=below, half=half)
    below = plan.embeddings
    for number in range(shape.depth):
        lora, trained = number in layers.lora, number in layers.trained
        layer = _Layer(shape, plan.lora_rank if lora else 0, trained, below)
        total += layer.cost(half=half)
        below = below or lora or trained
    return total


def _embeddings(shape: TowerShape, plan: PlanConfig, *, half: bool) -> Cost:
    """Patches, positions, class token, and the LayerNorm before the layers."""
    d, learned = shape.width, plan.embeddings
    matrix, bias = 3 * shape.patch**2 * d, d * shape.patch_bias
    vectors = d * shape.class_token + shape.tokens * d + 2 * d * shape.input_norm
    forward = 2 * shape.patches * matrix
    pixels = (HALF if half else FLOAT) * 3 * shape.size**2
    norm_input = FLOAT * shape.tokens * d * shape.input_norm
    return Cost(
        parameters=matrix + bias + vectors,
        learned=matrix + bias + vectors if learned else 0,
        shortened=matrix + bias if half and not learned else 0,
        forward=forward,
        backward=forward if learned else 0,
        activations=norm_input + pixels if learned else 0,
    )


def _final_norm(shape: TowerShape, *, learned: bool) -> Cost:
    own = 2 * shape.width
    kept = FLOAT * shape.tokens * shape.width  # its input
    return Cost(parameters=own, learned=own if learned else 0, activations=kept if learned else 0)


def _pooling_head(shape: TowerShape, *, learned: bool, below: bool, half: bool) -> Cost:
    """Attention of one learned query to all tokens, then a LayerNorm and an MLP.

    `below`: something under it learns, so its input needs a gradient.
    """
    d, f, n = shape.width, shape.mlp, shape.tokens
    once, each = 2 * d * d + 2 * d * f, 2 * d * d  # products of the query, and of each token
    scores = 2 * n * d  # query by keys, weights by values
    vectors = 8 * d + f  # the query, biases, LayerNorm
    own = 4 * d * d + 2 * d * f + vectors
    needless = 0 if learned else d * d + n * d  # gradients of the query
    inputs = once + n * each + 2 * scores - needless
    weights = once + n * each if learned else 0
    element = HALF if half else FLOAT
    tokens = n * (element * d * (2 + learned) + shape.heads * (FLOAT + HALF * half))
    query = element * (3 * d * learned + d + f * (1 + learned)) + FLOAT * d
    return Cost(
        parameters=own,
        learned=own if learned else 0,
        shortened=own - 3 * d if half and not learned else 0,
        forward=2 * (once + n * each + scores),
        backward=2 * (inputs + weights) if below else 0,
        activations=tokens + query if below else 0,
        copies=HALF * (4 * d * d + 2 * d * f) if half and learned else 0,
    )


@dataclass(frozen=True)
class _Layer:
    shape: TowerShape
    rank: int
    """Rank of its LoRA matrices; 0: none."""
    trained: bool
    below: bool
    """Something under it learns, so its input needs a gradient."""

    def cost(self, *, half: bool) -> Cost:
        d, f, n = self.shape.width, self.shape.mlp, self.shape.tokens
        matrices, lora = 4 * d * d + 2 * d * f, 8 * d * self.rank
        own = matrices + f + 9 * d  # biases, and two LayerNorms
        back = self.below or self.trained or self.rank > 0
        return Cost(
            parameters=own + lora,
            learned=lora + (own if self.trained else 0),
            shortened=matrices + f + 5 * d if half and not self.trained else 0,
            forward=2 * n * (matrices + lora + 2 * n * d),
            backward=self._backward() if back else 0,
            activations=self._activations(half=half) if back else 0,
            copies=HALF * (lora + matrices * self.trained) if half else 0,
        )

    def _backward(self) -> int:
        d, f, n = self.shape.width, self.shape.mlp, self.shape.tokens
        matrices = 4 * d * d + 2 * d * f
        inputs = matrices if self.below or self.trained else matrices - 3 * d * d
        weights = matrices if self.trained else 0
        lora = (16 if self.below else 13) * d * self.rank
        return 2 * n * (inputs + weights + lora + 5 * n * d)

    def _activations(self, *, half: bool) -> int:
        """Inputs of LayerNorms, of attention and its projections, of the MLP and its activation.

        Autocast makes a 16-bit copy of a float32 input for each matrix that reads it, and peft one
        of the attention output.
        """
        d, f, n = self.shape.width, self.shape.mlp, self.shape.tokens
        element, learns = HALF if half else FLOAT, self.trained or self.rank > 0
        norms = FLOAT * d * (2 if self.below or self.trained else 1)
        inputs = (3 if half else 1) * learns + (half and self.rank > 0)
        attention = element * d * (4 + inputs) + FLOAT * self.shape.heads
        gate = self.shape.activation == "quick_gelu"  # x * sigmoid(1.702 x) keeps both factors
        mlp = element * (f * (1 + gate + self.trained) + d * self.trained)
        return n * (norms + attention + mlp + element * 4 * self.rank)
