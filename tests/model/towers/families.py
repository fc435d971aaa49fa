"""Tiny towers of the families around transformers' models, with their references."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2VisionModelWithProjection,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
)

from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.blip2 import Blip2Tower
from img2prompt.model.towers.convnext import ConvNextTower
from img2prompt.model.towers.dinov2 import Dinov2RegistersTower, Dinov2Tower
from img2prompt.model.towers.dinov3 import Dinov3Tower

VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
BLIP2 = {
    "vision_config": {**VIT, "intermediate_size": 160},
    "qformer_config": {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "use_qformer_text_input": True,
    },
    "num_query_tokens": 5,
}
ROWS = 3


def pooled(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    return model(pixels).pooler_output


def pooled_body(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    return pooled(getattr(model, model.base_model_prefix), pixels)


def mean_of_queries(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """As transformers calls the Q-Former, with a mask that hides nothing."""
    assert isinstance(model, Blip2VisionModelWithProjection)
    tokens = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    outputs = model.qformer(
        query_embeds=model.query_tokens.expand(len(pixels), -1, -1),
        encoder_hidden_states=tokens,
        encoder_attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long),
    )
    return outputs.last_hidden_state.mean(1)


@dataclass(frozen=True)
class Family:
    """A family, and a model of transformers that has its feature."""

    tower: type[Tower]
    model: Callable[[], PreTrainedModel]
    feature: Callable[[PreTrainedModel, Tensor], Tensor]
    positions: bool = True
    """It has a table of positions."""
    exported: bool = True
    """transformers' AutoModel reads an export."""
    middle: str = "encoder.layer.2."
    """Name of the third layer."""


FAMILIES = {
    "DINOv2": Family(Dinov2Tower, lambda: Dinov2Model(Dinov2Config(**VIT)), pooled),
    "DINOv2 gated": Family(
        Dinov2Tower,
        lambda: Dinov2ForImageClassification(Dinov2Config(**VIT, use_swiglu_ffn=True)),
        pooled_body,
    ),
    "DINOv2 registers": Family(
        Dinov2RegistersTower,
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT)),
        pooled,
    ),
    "DINOv3": Family(
        Dinov3Tower,
        lambda: DINOv3ViTModel(
            DINOv3ViTConfig(**VIT, intermediate_size=160, num_register_tokens=4)
        ),
        pooled,
        positions=False,
        middle="model.layer.2.",
    ),
    "DINOv3 gated": Family(
        Dinov3Tower,
        lambda: DINOv3ViTModel(
            DINOv3ViTConfig(
                **VIT,
                intermediate_size=80,
                num_register_tokens=1,
                use_gated_mlp=True,
                hidden_act="silu",
                query_bias=False,
                value_bias=False,
                mlp_bias=False,
            )
        ),
        pooled,
        positions=False,
        middle="model.layer.2.",
    ),
    "ConvNeXt V2": Family(
        ConvNextTower,
        lambda: ConvNextV2ForImageClassification(
            ConvNextV2Config(
                depths=[1, 1, 2], hidden_sizes=[16, 32, 64], num_stages=3, image_size=32
            )
        ),
        pooled_body,
        positions=False,
        middle="encoder.stages.2.layers.0.",
    ),
    "BLIP-2": Family(
        Blip2Tower,
        lambda: Blip2VisionModelWithProjection(Blip2Config(**BLIP2)),
        mean_of_queries,
        exported=False,
        middle="vision_model.encoder.layers.2.",
    ),
}


def randomise(model: nn.Module) -> None:
    """Draw all weights, so that none is zero or one."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data = 0.2 * noise if tensor.ndim > 1 else tensor.data + 0.1 * noise


def pixels(size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (ROWS, size, size, 3), dtype=torch.uint8, generator=generator)


def edited(fields: dict[str, Any], name: str, value: object) -> dict[str, Any]:
    """A `config.json` with one field of the vision model changed."""
    if "vision_config" in fields:
        return fields | {"vision_config": edited(fields["vision_config"], name, value)}
    return fields | {name: value}
