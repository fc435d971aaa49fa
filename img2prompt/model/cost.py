"""What a training run costs, known before it starts: parameters, FLOP a picture, memory.

FLOP are counted as torch.utils.flop_counter does: a multiplication with its addition is 2; matrix
products, attention and the patch convolution count, element-wise work (about 1 %) does not. There
is no backward pass below the lowest layer that learns, and weight gradients only for what learns.

Per layer, with n tokens of width d, an MLP of width f and LoRA of rank r:

- forward `8ndd + 4ndf + 4nnd`, with LoRA `16ndr` more;
- backward: attention `10nnd` (it computes its scores again: FlashAttention, arXiv 2205.14135), the
  input gradients `8ndd + 4ndf` (`2ndd + 4ndf` in the lowest layer that learns by LoRA), the weight
  gradients of a trained layer `8ndd + 4ndf`, LoRA's own `32ndr` (`26ndr` in the lowest).

Activations are what eager autograd keeps for the backward pass; torch.compile keeps less.
"""

import itertools
from dataclasses import astuple, dataclass

from transformers import CLIPVisionConfig

from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.data.vectors import DIMENSIONS
from img2prompt.model.plan import layer_plan
from img2prompt.model.towers.weights import sides

FLOAT = 4
"""Bytes of a float32: weights, gradients, AdamW's moments and the residual stream."""
HALF = 2
"""Bytes of a bfloat16 or float16."""


@dataclass(frozen=True)
class Cost:
    """FLOP and activations are those of one picture; memory is in bytes."""

    parameters: int = 0
    learned: int = 0
    """Parameters that learn."""
    shortened: int = 0
    """Parameters that are held in 16 bits: frozen matrices and their biases."""
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
        long = self.parameters - self.shortened
        return FLOAT * long + HALF * self.shortened + self.copies

    @property
    def gradients(self) -> int:
        return FLOAT * self.learned

    @property
    def optimizer(self) -> int:
        """AdamW's two moments."""
        return 2 * FLOAT * self.learned

    def memory(self, rows: int, workers: int = 1, zero_stage: int = 0) -> dict[str, int]:
        """Bytes of one of `workers`, by what they hold; it takes `rows` pictures at once.

        ZeRO (arXiv 1910.02054) divides the optimiser's state among the workers from stage 1 on,
        gradients from 2, weights in 3.
        """
        parts = [workers if zero_stage >= stage else 1 for stage in (1, 2, 3)]
        return {
            "weights": self.weights // parts[2],
            "gradients": self.gradients // parts[1],
            "optimiser": self.optimizer // parts[0],
            f"activations of {rows} rows": rows * self.activations,
        }

    def describe(self, rows: int, workers: int = 1, zero_stage: int = 0) -> str:
        """All of it in a line, for the same worker."""
        memory = self.memory(rows, workers, zero_stage)
        parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in memory.items())
        both = self.forward + self.backward
        return (
            f"{self.learned / 1e6:.2f}M of {self.parameters / 1e6:.2f}M parameters learn "
            f"({self.learned / self.parameters:.1%}); GFLOP a row: {self.forward / 1e9:.4g} "
            f"forward, {both / 1e9:.4g} with backward; about {sum(memory.values()) / 1e9:.3g} GB a "
            f"worker ({parts})"
        )


def cost(
    vision: CLIPVisionConfig,
    plan: PlanConfig,
    head: HeadConfig,
    *,
    half: bool,
    cached: bool = False,
) -> Cost:
    """The cost of training a head on a tower of the shape `vision` under `plan`.

    `half`: matrix products in 16 bits by autocast, weights in float32. `cached`: features are read
    in place of pictures, so the tower neither runs nor is in memory (a probe). LoRA dropout, which
    keeps about `16nd` bytes a layer, is left out.

    Raises:
        UserError: rates of the plan that overlap.
    """
    own = _head(vision.hidden_size, head, half=half, below=not plan.frozen_tower)
    return own if cached else own + _tower(vision, plan, half=half)


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


def _tower(vision: CLIPVisionConfig, plan: PlanConfig, *, half: bool) -> Cost:
    layers = layer_plan(vision.num_hidden_layers, plan.lora_rate, plan.nfz_rate)
    total = _ends(vision, plan, half=half)
    below = plan.embeddings
    for number in range(vision.num_hidden_layers):
        lora, trained = number in layers.lora, number in layers.trained
        shape = _Layer(vision, plan.lora_rank if lora else 0, trained, below)
        total += shape.cost(half=half)
        below = below or lora or trained
    return total


def _ends(vision: CLIPVisionConfig, plan: PlanConfig, *, half: bool) -> Cost:
    """The embeddings, and the LayerNorms before and after the layers."""
    d, patches = vision.hidden_size, _patches(vision)
    matrix = 3 * sides(vision)[1] ** 2 * d
    embeddings = matrix + d + (patches + 1) * d + 2 * d  # class token, positions, first LayerNorm
    forward = 2 * patches * matrix
    tokens = patches + 1
    kept = 0 if plan.frozen_tower else FLOAT * tokens * d  # the last LayerNorm's input
    if plan.embeddings:  # the first LayerNorm's input, and the pixels
        kept += FLOAT * tokens * d + (HALF if half else FLOAT) * 3 * sides(vision)[0] ** 2
    return Cost(
        parameters=embeddings + 2 * d,
        learned=(0 if plan.frozen_tower else 2 * d) + (embeddings if plan.embeddings else 0),
        shortened=matrix if half and not plan.embeddings else 0,
        forward=forward,
        backward=forward if plan.embeddings else 0,
        activations=kept,
    )


def _patches(vision: CLIPVisionConfig) -> int:
    side, patch = sides(vision)
    return (side // patch) ** 2


@dataclass(frozen=True)
class _Layer:
    vision: CLIPVisionConfig
    rank: int
    """Of LoRA; 0: none."""
    trained: bool
    below: bool
    """Something under it learns, so its input needs a gradient."""

    def cost(self, *, half: bool) -> Cost:
        d, f = self.vision.hidden_size, self.vision.intermediate_size
        matrices, lora = 4 * d * d + 2 * d * f, 8 * d * self.rank
        own = matrices + f + 9 * d  # biases, and two LayerNorms
        back = self.below or self.trained or self.rank > 0
        return Cost(
            parameters=own + lora,
            learned=lora + (own if self.trained else 0),
            shortened=matrices + f + 5 * d if half and not self.trained else 0,
            forward=2 * self._tokens * (matrices + lora + 2 * self._tokens * d),
            backward=self._backward() if back else 0,
            activations=self._activations(half=half) if back else 0,
            copies=HALF * (lora + matrices * self.trained) if half else 0,
        )

    @property
    def _tokens(self) -> int:
        return _patches(self.vision) + 1

    def _backward(self) -> int:
        d, f, n = self.vision.hidden_size, self.vision.intermediate_size, self._tokens
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
        d, f, n = self.vision.hidden_size, self.vision.intermediate_size, self._tokens
        element, learns = HALF if half else FLOAT, self.trained or self.rank > 0
        norms = FLOAT * d * (2 if self.below or self.trained else 1)
        inputs = (3 if half else 1) * learns + (half and self.rank > 0)
        attention = element * d * (4 + inputs) + FLOAT * self.vision.num_attention_heads
        gate = self.vision.hidden_act == "quick_gelu"  # x * sigmoid(1.702 x) keeps both factors
        mlp = element * (f * (1 + gate + self.trained) + d * self.trained)
        return n * (norms + attention + mlp + element * 4 * self.rank)
