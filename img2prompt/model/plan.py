"""Which layers of a tower learn, and how: the published layout of frozen, LoRA and trained layers.

Source: the 1st place of Kaggle's "Stable Diffusion - Image to Prompts". Counted from the top, the
last `int(depth * nfz_rate)` layers are trained whole, the `int(depth * lora_rate)` below them get
LoRA (arXiv 2106.09685) on the four attention projections (1 x 1 convolutions in a convolutional
tower), the rest stays frozen.
"""

from dataclasses import dataclass

from img2prompt.config.train import PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.towers.base import Tower


@dataclass(frozen=True)
class LayerPlan:
    """Layer numbers, 0 at the bottom. Settings that mean the same layers compare equal."""

    frozen: tuple[int, ...]
    lora: tuple[int, ...]
    trained: tuple[int, ...]

    def __str__(self) -> str:
        parts = [("frozen", self.frozen), ("LoRA", self.lora), ("trained", self.trained)]
        return ", ".join(f"{name} {_span(layers)}" for name, layers in parts)


def _span(layers: tuple[int, ...]) -> str:
    return f"{layers[0]}-{layers[-1]} ({len(layers)})" if layers else "none"


def layer_plan(depth: int, lora_rate: float, nfz_rate: float) -> LayerPlan:
    """Return the plan for a tower of `depth` layers; rates that overlap are a UserError."""
    # The tiny term keeps 100 * 0.57 = 56.999... from losing a layer.
    trained, lora = (int(depth * rate + 1e-9) for rate in (nfz_rate, lora_rate))
    if min(lora_rate, nfz_rate) < 0 or lora + trained > depth:
        raise UserError(
            f"lora_rate {lora_rate} and nfz_rate {nfz_rate} overlap or are negative; "
            f"allowed: both 0 or more, together at most the {depth} layers"
        )
    bottom_lora, bottom_trained = depth - trained - lora, depth - trained
    return LayerPlan(
        frozen=tuple(range(bottom_lora)),
        lora=tuple(range(bottom_lora, bottom_trained)),
        trained=tuple(range(bottom_trained, depth)),
    )


def apply_plan(tower: Tower, config: PlanConfig) -> LayerPlan:
    """Freeze, unfreeze and add LoRA matrices in place; return the plan.

    The final norm is trained with any learning layer, a pooling head when the top layer is trained
    whole. The embeddings, and a norm between them and the layers, are trained only when asked for,
    as training from nothing needs. LoRA matrices are those of `lora.add_lora`.
    """
    plan = layer_plan(tower.shape.depth, config.lora_rate, config.nfz_rate)
    tower.requires_grad_(False)
    for module in tower.embeddings:
        module.requires_grad_(config.embeddings)
    for number in plan.trained:
        tower.layers[number].requires_grad_(True)
    tower.final_norm.requires_grad_(not config.frozen_tower)
    if tower.pooling_head is not None:
        tower.pooling_head.requires_grad_(bool(plan.trained))
    if plan.lora:
        from img2prompt.model.lora import add_lora

        add_lora(tower, plan.lora, config)
    return plan
