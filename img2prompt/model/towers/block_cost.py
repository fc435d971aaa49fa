"""Costs of the parts that vision transformers and ConvNets share: matrices and attention.

FLOP of a matrix from i to o numbers at n positions: `2nio` forward, as much for the gradient of its
input and for that of its weights. LoRA of rank r adds two matrices, from i to r and from r to o.
Attention of n queries to m keys of width d: `4nmd` forward, and `10nmd` backward, which computes
the scores again (FlashAttention, arXiv 2205.14135).

DoRA multiplies its two matrices once more in each pass, for the norm of the sum: about `2ri(i + o)`
FLOP, however many pictures the batch has. These are left out.
"""

from dataclasses import dataclass

from img2prompt.config.train import PlanConfig
from img2prompt.model.cost import FLOAT, HALF, Cost


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A linear layer, or a convolution of single pixels."""

    inputs: int
    outputs: int
    bias: bool = True

    @property
    def weights(self) -> int:
        """Number of weights, without the bias."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return self.weights + self.bias * self.outputs


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How a part of a layer learns."""

    trained: bool = False
    """Its own weights learn."""
    rank: int = 0
    """Rank of its LoRA matrices; 0: none."""
    dora: bool = False
    """Its LoRA is DoRA, with a learned magnitude for each output."""

    @classmethod
    def of(cls, plan: PlanConfig, *, trained: bool, lora: bool) -> "Learning":
        """Learning of a part under `plan`; `lora`: it is one that LoRA adapts."""
        return cls(
            trained=trained,
            rank=plan.lora_rank if lora else 0,
            dora=plan.lora_dora and lora,
        )

    @property
    def learns(self) -> bool:
        """Something of it learns."""
        return self.trained or self.rank > 0


FROZEN = Learning()


def element(half: bool) -> int:
    """Bytes of a number in matrix products."""
    return HALF if half else FLOAT


def matrix_cost(
    matrix: Matrix, positions: int, learning: Learning, *, below: bool, half: bool
) -> Cost:
    """Cost of a matrix at so many positions, without the input that the backward pass keeps.

    `below`: its input needs a gradient.
    """
    rank, outputs = learning.rank, matrix.outputs
    lora = rank * (matrix.inputs + outputs)
    magnitude = outputs * learning.dora
    own = matrix.parameters
    weights = matrix.weights * learning.trained + lora
    inputs = (matrix.weights + rank * matrix.inputs) * below + rank * outputs
    kept = rank + 2 * outputs * learning.dora
    return Cost(
        parameters=own + lora + magnitude,
        learned=own * learning.trained + lora + magnitude,
        shortened=own if half and not learning.trained else 0,
        forward=2 * positions * (matrix.weights + lora),
        backward=2 * positions * (weights + inputs),
        activations=element(half) * positions * kept,
        copies=HALF * weights if half else 0,
    )


def attention_cost(
    queries: int, keys: int, width: int, heads: int, *, back: bool, half: bool
) -> Cost:
    """Cost of scaled dot-product attention between projected tokens.

    `back`: its result needs a gradient.
    """
    product = 2 * queries * keys * width
    kept = element(half) * width * 2 * (queries + keys) + FLOAT * heads * queries
    return Cost(
        forward=2 * product,
        backward=5 * product if back else 0,
        activations=kept if back else 0,
    )


def norm_cost(width: int, positions: int, *, learned: bool, back: bool, size: int = FLOAT) -> Cost:
    """Cost of a LayerNorm; `back`: its result needs a gradient, so it keeps its input.

    `size`: bytes of a number of its input.
    """
    return Cost(
        parameters=2 * width,
        learned=2 * width if learned else 0,
        activations=size * positions * width if back else 0,
    )


def activation_copies(activation: str) -> int:
    """Number of tensors that the backward pass of an activation keeps."""
    return 2 if activation == "quick_gelu" else 1  # x * sigmoid(1.702 x) keeps both factors
