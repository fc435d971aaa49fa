"""Sizes of a vision transformer, and what training one costs.

Per layer, with n tokens of width d, an MLP of width f and LoRA of rank r on the attention, in FLOP:

- forward `8ndd + 4ndf + 4nnd`, with LoRA `16ndr` more; a gated MLP has `6ndf`;
- backward: attention `10nnd`, the input gradients `8ndd + 4ndf` (`2ndd + 4ndf` in the lowest layer
  that learns by LoRA), the weight gradients of a trained layer `8ndd + 4ndf`, LoRA's own `32ndr`
  (`26ndr` in the lowest).

A pooling head that attends with one query to n tokens: forward `4ndd + 4dd + 4df + 4nd`.
"""

from dataclasses import dataclass
from typing import Literal

from img2prompt.config.train import PlanConfig
from img2prompt.model.cost import FLOAT, HALF, Cost
from img2prompt.model.plan import layer_plan
from img2prompt.model.towers.base import TowerShape
from img2prompt.model.towers.block_cost import (
    Learning,
    Matrix,
    activation_copies,
    attention_cost,
    element,
    matrix_cost,
    norm_cost,
)

Pooling = Literal["class token", "attention", "q-former"]


@dataclass(frozen=True, kw_only=True)
class VitShape(TowerShape):
    """Sizes of a vision transformer."""

    token: int
    """Length of a token."""
    mlp: int
    """Hidden units of a layer's MLP."""
    heads: int
    """Attention heads of a layer."""
    activation: str
    """Name of the MLP's activation, as transformers spells it."""
    attention: tuple[Matrix, ...]
    """Matrices of a layer's attention: queries, keys and values, or one for the three; output."""
    mlp_matrices: tuple[Matrix, ...]
    """Matrices of a layer's MLP; three if it is gated."""
    layer_scale: bool = False
    """Both branches of a layer are scaled by learned vectors (arXiv 2103.17239)."""
    patch: int
    """Side of a patch in pixels."""
    class_token: bool
    """A learned token stands before those of the patches."""
    registers: int = 0
    """Learned tokens after the class token that no feature reads (arXiv 2309.16588)."""
    positions: bool = True
    """Position embeddings are a learned table; otherwise they are rotary (arXiv 2104.09864)."""
    patch_bias: bool
    """The patch convolution has a bias."""
    input_norm: bool
    """A LayerNorm between the embeddings and the lowest layer."""
    norm_all: bool = False
    """The final norm is that of all tokens, though one of them is the feature."""
    pooling: Pooling
    """`class token`: the final norm of that token. `attention`: a learned query attends to the
    final norm of all tokens, and an MLP follows (arXiv 2106.04560, section 3.4). `q-former`: so do
    several learned queries, through the layers of a Q-Former."""

    @property
    def patches(self) -> int:
        """Number of patches of a picture."""
        return (self.size // self.patch) ** 2

    @property
    def tokens(self) -> int:
        """Number of tokens of a picture in each layer."""
        return self.patches + self.class_token + self.registers

    def cost(self, plan: PlanConfig, *, half: bool) -> Cost:
        layers = layer_plan(self.depth, plan.lora_rate, plan.nfz_rate)
        learned = not plan.frozen_tower
        total = _embeddings(self, plan, half=half)
        total += norm_cost(self.token, self.tokens, learned=learned, back=learned)
        total += self.pooling_cost(learned=bool(layers.trained), below=learned, half=half)
        below = plan.embeddings
        for number in range(self.depth):
            lora, trained = number in layers.lora, number in layers.trained
            total += _layer(self, plan, lora=lora, trained=trained, below=below, half=half)
            below = below or lora or trained
        return total

    def pooling_cost(self, *, learned: bool, below: bool, half: bool) -> Cost:
        """Cost of what follows the final norm; `below`: its input needs a gradient."""
        if self.pooling == "attention":
            return _attention_pooling(self, learned=learned, below=below, half=half)
        # The head keeps its input, a part of all normalised tokens, unless it makes a copy.
        tokens = FLOAT * self.tokens * self.token
        return Cost(activations=tokens if self.norm_all and below and not half else 0)


def attention_matrices(width: int, biases: tuple[bool, bool, bool, bool]) -> tuple[Matrix, ...]:
    """Matrices of attention; `biases` of queries, keys, values and output."""
    return tuple(Matrix(inputs=width, outputs=width, bias=bias) for bias in biases)


def mlp_matrices(
    width: int, hidden: int, *, gated: bool = False, bias: bool = True
) -> tuple[Matrix, ...]:
    """Matrices of an MLP: up, perhaps gate, and down."""
    up = Matrix(inputs=width, outputs=hidden, bias=bias)
    down = Matrix(inputs=hidden, outputs=width, bias=bias)
    return (up, up, down) if gated else (up, down)


def _embeddings(shape: VitShape, plan: PlanConfig, *, half: bool) -> Cost:
    """Patches, positions, class token, registers, and the LayerNorm before the layers."""
    d, learned = shape.token, plan.embeddings
    matrix, bias = 3 * shape.patch**2 * d, d * shape.patch_bias
    rows = shape.class_token + shape.registers
    table = shape.patches + shape.class_token if shape.positions else 0
    vectors = d * (rows + table + 2 * shape.input_norm)
    forward = 2 * shape.patches * matrix
    norm_input = FLOAT * shape.tokens * d * shape.input_norm
    return Cost(
        parameters=matrix + bias + vectors,
        learned=matrix + bias + vectors if learned else 0,
        shortened=matrix + bias if half and not learned else 0,
        forward=forward,
        backward=forward if learned else 0,
        activations=norm_input + element(half) * 3 * shape.size**2 if learned else 0,
        copies=HALF * matrix if half and learned else 0,
    )


def _attention_pooling(shape: VitShape, *, learned: bool, below: bool, half: bool) -> Cost:
    """Attention of one learned query to all tokens, then a LayerNorm and an MLP."""
    d, f, n = shape.token, shape.mlp, shape.tokens
    once, token = 2 * d * d + 2 * d * f, 2 * d * d  # products of the query, and of each token
    scores = 2 * n * d  # query by keys, weights by values
    vectors = 8 * d + f  # the query, biases, LayerNorm
    own = 4 * d * d + 2 * d * f + vectors
    needless = 0 if learned else d * d + n * d  # gradients of the query
    inputs = once + n * token + 2 * scores - needless
    weights = once + n * token if learned else 0
    size = element(half)
    tokens = n * (size * d * (2 + learned) + shape.heads * (FLOAT + HALF * half))
    query = size * (3 * d * learned + d + f * (1 + learned)) + FLOAT * d
    return Cost(
        parameters=own,
        learned=own if learned else 0,
        shortened=own - 3 * d if half and not learned else 0,
        forward=2 * (once + n * token + scores),
        backward=2 * (inputs + weights) if below else 0,
        activations=tokens + query if below else 0,
        copies=HALF * (4 * d * d + 2 * d * f) if half and learned else 0,
    )


def _layer(
    shape: VitShape, plan: PlanConfig, *, lora: bool, trained: bool, below: bool, half: bool
) -> Cost:
    """A layer; `below`: something under it learns, so its input needs a gradient."""
    attends = lora and plan.lora_targets != "mlp"
    attention = Learning.of(plan, trained=trained, lora=attends)
    mlp = Learning.of(plan, trained=trained, lora=lora and plan.lora_targets != "attention")
    middle = below or attention.learns
    scales = 2 * shape.token * shape.layer_scale
    return (
        _attention(shape, attention, below=below, half=half)
        + _mlp(shape, mlp, below=middle, half=half)
        + Cost(
            parameters=scales,
            learned=scales if trained else 0,
            activations=element(half) * shape.tokens * scales if trained else 0,
        )
    )


def _attention(shape: VitShape, learning: Learning, *, below: bool, half: bool) -> Cost:
    """LayerNorm and attention.

    Autocast makes a 16-bit copy of a float32 input for each matrix that reads it, and peft one of
    the attention output. Rotary positions leave tokens in an order in which that output is copied.
    """
    d, n = shape.token, shape.tokens
    *first, last = shape.attention
    normed, back = below or learning.trained, below or learning.learns
    total = norm_cost(d, n, learned=learning.trained, back=normed)
    for matrix in first:
        total += matrix_cost(matrix, n, learning, below=normed, half=half)
    total += attention_cost(n, n, d, shape.heads, back=back, half=half)
    total += matrix_cost(last, n, learning, below=back, half=half)
    copied = (half and learning.rank > 0) or (learning.learns and not shape.positions)
    inputs = (len(first) if half else 1) * learning.learns + copied
    return total + Cost(activations=element(half) * n * d * inputs)


def _mlp(shape: VitShape, learning: Learning, *, below: bool, half: bool) -> Cost:
    """LayerNorm and MLP: its input, those of the activation and of the product with a gate."""
    d, f, n = shape.token, shape.mlp, shape.tokens
    *first, last = shape.mlp_matrices
    back = below or learning.learns
    total = norm_cost(d, n, learned=learning.trained, back=below or learning.trained)
    for matrix in first:
        total += matrix_cost(matrix, n, learning, below=below or learning.trained, half=half)
    total += matrix_cost(last, n, learning, below=back, half=half)
    inputs = d * (len(first) if half else 1) + f
    gate = 2 if len(first) == 2 else 0  # both factors
    hidden = f * (activation_copies(shape.activation) + gate)
    return total + Cost(activations=element(half) * n * (hidden * back + inputs * learning.learns))
