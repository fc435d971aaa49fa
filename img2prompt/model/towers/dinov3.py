"""DINOv3 vision transformers (arXiv 2508.10104): registers, and rotary positions.

The feature is the class token after the final norm. Pixels are normalised as for the checkpoints
that learned web pictures (LVD-1689M); those that learned satellite pictures have another mean.
"""

import re
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DINOv3ViTConfig

from img2prompt.model.towers.pretrained import side_of
from img2prompt.model.towers.vit import VitTower, fix_mask_token
from img2prompt.model.towers.vit_shape import VitShape, attention_matrices, mlp_matrices

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Dinov3Tower(VitTower):
    """A DINOv3 vision transformer."""

    family = "DINOv3"
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    config_class = DINOv3ViTConfig
    model_name = "DINOv3ViTModel"
    prefixes = ()
    layers_name = "model.layer"
    final_norm_name = "norm"
    attention_names = tuple(f"attention.{n}" for n in ("q_proj", "k_proj", "v_proj", "o_proj"))
    mlp_names = ("mlp.up_proj", "mlp.down_proj")
    positions_name = ""

    def __init__(self, vision: "PreTrainedModel") -> None:
        super().__init__(vision)
        fix_mask_token(vision.get_submodule("embeddings"))

    @classmethod
    def shape_of(cls, config: Any) -> VitShape:
        width, hidden = config.hidden_size, config.intermediate_size
        biases = (config.query_bias, config.key_bias, config.value_bias, config.proj_bias)
        gated = config.use_gated_mlp
        return VitShape(
            depth=config.num_hidden_layers,
            width=width,
            token=width,
            mlp=hidden,
            heads=config.num_attention_heads,
            activation=config.hidden_act,
            attention=attention_matrices(width, biases),
            mlp_matrices=mlp_matrices(width, hidden, gated=gated, bias=config.mlp_bias),
            layer_scale=True,
            size=side_of(config.image_size),
            patch=side_of(config.patch_size),
            class_token=True,
            registers=config.num_register_tokens,
            positions=False,
            patch_bias=True,
            input_norm=False,
            norm_all=True,
            pooling="class token",
        )

    @classmethod
    def renamed(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published checkpoints have their layers at the top."""
        return {re.sub(r"^layer\.", "model.layer.", name): t for name, t in tensors.items()}
