"""DINOv2 vision transformers (arXiv 2304.07193), also with registers (2309.16588).

The feature is the class token after the final norm.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import Dinov2Config, Dinov2WithRegistersConfig

from img2prompt.model.towers.pretrained import side_of
from img2prompt.model.towers.vit import VitTower, fix_mask_token
from img2prompt.model.towers.vit_shape import VitShape, attention_matrices, mlp_matrices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PUBLISHED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "mlp.weights_out": "mlp.down_proj",
}
"""Parts of names in the published checkpoints, and in transformers 5."""
GATE_AND_UP = "mlp.weights_in"
"""Published name of the gate and of what it multiplies, one above the other."""


class Dinov2Tower(VitTower):
    """A DINOv2 vision transformer without registers."""

    family = "DINOv2"
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    config_class = Dinov2Config
    model_name = "Dinov2Model"
    other_tensors = ("classifier.",)
    prefixes = ("dinov2.",)
    layers_name = "encoder.layer"
    final_norm_name = "layernorm"
    attention_names = tuple(f"attention.{n}" for n in ("q_proj", "k_proj", "v_proj", "o_proj"))
    positions_name = "embeddings.position_embeddings"

    def __init__(self, vision: "PreTrainedModel") -> None:
        super().__init__(vision)
        fix_mask_token(vision.get_submodule("embeddings"))

    @classmethod
    def shape_of(cls, config: Any) -> VitShape:
        width, gated = config.hidden_size, config.use_swiglu_ffn
        hidden = int(width * config.mlp_ratio)
        if gated:  # two thirds, rounded up to a multiple of 8
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        biases = (*(config.qkv_bias,) * 3, True)
        return VitShape(
            depth=config.num_hidden_layers,
            width=width,
            token=width,
            mlp=hidden,
            heads=config.num_attention_heads,
            activation="silu" if gated else config.hidden_act,
            attention=attention_matrices(width, biases),
            mlp_matrices=mlp_matrices(width, hidden, gated=gated),
            layer_scale=True,
            size=side_of(config.image_size),
            patch=side_of(config.patch_size),
            class_token=True,
            registers=getattr(config, "num_register_tokens", 0),
            patch_bias=True,
            input_norm=False,
            norm_all=True,
            pooling="class token",
        )

    @classmethod
    def renamed(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            for published, current in PUBLISHED.items():
                name = name.replace(published, current)
            if GATE_AND_UP in name:
                gate, up = tensor.chunk(2)
                renamed[name.replace(GATE_AND_UP, "mlp.gate_proj")] = gate
                renamed[name.replace(GATE_AND_UP, "mlp.up_proj")] = up
            else:
                renamed[name] = tensor
        return renamed


class Dinov2RegistersTower(Dinov2Tower):
    """A DINOv2 vision transformer with registers."""

    family = "DINOv2 with registers"
    config_class = Dinov2WithRegistersConfig
    model_name = "Dinov2WithRegistersModel"
    prefixes = ("dinov2_with_registers.",)
    smooth_positions = True
