"""Sizes of a vision transformer, and what training one costs.

Per layer, with n tokens of width d, an MLP of width f and LoRA of rank r, in FLOP:

- forward `8ndd + 4ndf + 4nnd`, with LoRA `16ndr` more;
- backward: attention `10nnd` (it computes its scores again: FlashAttention, arXiv 2205.14135), the
  input gradients `8ndd + 4ndf` (`2ndd + 4ndf` in the lowest layer that learns by LoRA), the weight
  gradients of a trained layer `8ndd + 4ndf`, LoRA's own `32ndr` (`26ndr` in the lowest).

A pooling head that attends with one query to n tokens: forward `4ndd + 4dd + 4df + 4nd`.
"""

from dataclasses import dataclass
from typing import Literal

from img2prompt.config.train import PlanConfig
from img2prompt.model.cost import FLOAT, HALF, Cost
from img2prompt.model.plan import layer_plan
from img2prompt.model.towers.base import TowerShape

Pooling = Literal["class token", "attention"]


@dataclass(frozen=True, kw_only=True)
class VitShape(TowerShape):
    """Sizes of a vision transformer; `width` is also the length of a token."""

    mlp: int
    """Hidden units of a layer's MLP."""
    heads: int
    """Attention heads of a layer."""
    activation: str
    """Name of the MLP's activation, as transformers spells it."""
    patch: int
    """Side of a patch in pixels."""
    class_token: bool
    """A learned token stands before those of the patches."""
    patch_bias: bool
    """The patch convolution has a bias."""
    input_norm: bool
    """A LayerNorm between the embeddings and the lowest layer."""
    pooling: Pooling
    """`class token`: the final norm of that token. `attention`: a learned query attends to the
    final norm of all tokens, and an MLP follows (arXiv 2106.04560, section 3.4)."""

    @property
    def patches(self) -> int:
        """Number of patches of a picture."""
        return (self.size // self.patch) ** 2

    @property
    def tokens(self) -> int:
        """Number of tokens of a picture in each layer."""
        return self.patches + self.class_token

    def cost(self, plan: PlanConfig, *, half: bool) -> Cost:
        layers = layer_plan(self.depth, plan.lora_rate, plan.nfz_rate)
        learned = not plan.frozen_tower
        total = _embeddings(self, plan, half=half) + _final_norm(self, learned=learned)
        if self.pooling == "attention":
            trained = bool(layers.trained)
            total += _pooling_head(self, learned=trained, below=learned, half=half)
        below = plan.embeddings
        for number in range(self.depth):
            lora, trained = number in layers.lora, number in layers.trained
            layer = _Layer(self, plan.lora_rank if lora else 0, trained, below)
            total += layer.cost(half=half)
            below = below or lora or trained
        return total


def _embeddings(shape: VitShape, plan: PlanConfig, *, half: bool) -> Cost:
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


def _final_norm(shape: VitShape, *, learned: bool) -> Cost:
    own = 2 * shape.width
    kept = FLOAT * shape.tokens * shape.width  # its input
    return Cost(parameters=own, learned=own if learned else 0, activations=kept if learned else 0)


def _pooling_head(shape: VitShape, *, learned: bool, below: bool, half: bool) -> Cost:
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
    shape: VitShape
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
