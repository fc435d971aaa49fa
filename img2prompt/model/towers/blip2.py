"""The vision tower of BLIP-2 (arXiv 2301.12597): a vision transformer and a Q-Former above it.

The feature is the mean of the Q-Former's query outputs. Layers are those of the vision transformer;
the Q-Former with its query tokens is the pooling head. A language model in the checkpoint is not
read. transformers has no model of these parts alone, so an export is for this package.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Blip2Config
from transformers.models.blip_2.modeling_blip_2 import (
    Blip2PreTrainedModel,
    Blip2QFormerModel,
    Blip2VisionModel,
)

from img2prompt.errors import UserError
from img2prompt.model.towers.blip2_shape import Blip2Shape, QFormerShape
from img2prompt.model.towers.block_cost import Matrix
from img2prompt.model.towers.pretrained import side_of
from img2prompt.model.towers.vit import VitTower
from img2prompt.model.towers.vit_shape import mlp_matrices
from img2prompt.model.towers.weights import CONFIG

POOL = ("query_tokens", "qformer.")
"""Beginnings of the names of what `pool` holds in a checkpoint."""
TEXT_PARTS = re.compile(r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\.")
"""Parts of a Q-Former that only texts pass through."""


class QFormerPool(nn.Module):
    """Mean output of learned queries to the tokens of a picture."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size = (1, config.num_query_tokens, config.qformer_config.hidden_size)
        self.query_tokens = nn.Parameter(torch.zeros(size))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)

    def forward(self, tokens: Tensor) -> Tensor:
        """Features (B, D) of tokens (B, N, width)."""
        queries = self.query_tokens.expand(len(tokens), -1, -1)
        outputs = self.qformer(query_embeds=queries, encoder_hidden_states=tokens)
        return outputs.last_hidden_state.mean(1)


class Blip2Vision(Blip2PreTrainedModel):
    """Vision transformer and Q-Former."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        self.pool = QFormerPool(config)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features (B, D) of normalised pixels (B, 3, S, S)."""
        tokens = self.vision_model.encoder(inputs_embeds=self._embed(pixel_values))
        return self.pool(self.vision_model.post_layernorm(tokens.last_hidden_state))

    def _embed(self, pixel_values: Tensor) -> Tensor:
        """Tokens of patches, without shortening class token and positions as transformers does."""
        parts = self.vision_model.embeddings
        patches = parts.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        first = parts.class_embedding.expand(len(patches), -1, -1)
        return torch.cat([first, patches], dim=1) + parts.position_embedding


class Blip2Tower(VitTower):
    """The vision tower of a BLIP-2."""

    family = "BLIP-2"
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    config_class = Blip2Config
    model_name = "Blip2Vision"
    other_tensors = (
        "embeddings.",
        "itm_head.",
        "language_model.",
        "language_projection.",
        "text_projection.",
        "vision_projection.",
    )
    prefixes = ()
    pooling = "q-former"
    layers_name = "vision_model.encoder.layers"
    final_norm_name = "vision_model.post_layernorm"
    attention_names = ("self_attn.qkv", "self_attn.projection")
    positions_name = "vision_model.embeddings.position_embedding"

    @classmethod
    def model_class(cls) -> type[Blip2Vision]:
        return Blip2Vision

    @classmethod
    def shape_of(cls, config: Any) -> Blip2Shape:
        vision, q_former = config.vision_config, config.qformer_config
        width = vision.hidden_size
        fused = Matrix(inputs=width, outputs=3 * width, bias=vision.qkv_bias)
        return Blip2Shape(
            depth=vision.num_hidden_layers,
            width=q_former.hidden_size,
            token=width,
            mlp=vision.intermediate_size,
            heads=vision.num_attention_heads,
            activation=vision.hidden_act,
            attention=(fused, Matrix(inputs=width, outputs=width)),
            mlp_matrices=mlp_matrices(width, vision.intermediate_size),
            size=side_of(vision.image_size),
            patch=side_of(vision.patch_size),
            class_token=True,
            patch_bias=True,
            input_norm=False,
            pooling=cls.pooling,
            q_former=QFormerShape(
                depth=q_former.num_hidden_layers,
                width=q_former.hidden_size,
                mlp=q_former.intermediate_size,
                heads=q_former.num_attention_heads,
                activation=q_former.hidden_act,
                queries=config.num_query_tokens,
                cross_every=q_former.cross_attention_frequency,
            ),
        )

    @classmethod
    def set_size(cls, config: Any, size: int) -> None:
        config.vision_config.image_size = size

    @classmethod
    def vision_fields(cls, path: Path, fields: dict[str, Any]) -> dict[str, Any]:
        sections = {name: fields.get(name, {}) for name in ("vision_config", "qformer_config")}
        for name, section in sections.items():
            if not isinstance(section, dict):
                raise UserError(f"{path} has a {name} that is no JSON object")
        sections["qformer_config"] = sections["qformer_config"] | {"use_qformer_text_input": False}
        queries = {name: fields[name] for name in ("num_query_tokens",) if name in fields}
        return sections | queries

    @classmethod
    def check_config(cls, path: Path, config: Any) -> None:
        vision = copy.deepcopy(config.vision_config)
        vision.num_channels = 3  # it has no such field
        super().check_config(path, vision)

    @classmethod
    def renamed(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            f"pool.{name}" if name.startswith(POOL) else name: tensor
            for name, tensor in tensors.items()
            if not TEXT_PARTS.match(name)
        }

    @property
    def embeddings(self) -> list[nn.Module]:
        return [self.vision.get_submodule("vision_model.embeddings")]

    @property
    def pooling_head(self) -> nn.Module:
        return self.vision.get_submodule("pool")

    def encode(self, normalised: Tensor) -> Tensor:
        matrix = self.vision.get_parameter("vision_model.embeddings.patch_embedding.weight")
        return self.vision(normalised.to(matrix.dtype))

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        config = self.vision.config.to_dict()
        names = ("model_type", "vision_config", "qformer_config", "num_query_tokens")
        fields = {name: config[name] for name in names}
        (Path(folder) / CONFIG).write_text(json.dumps(fields, indent=2))
        tensors = {
            name.removeprefix("pool."): tensor.to(dtype).contiguous()
            for name, tensor in self.vision.state_dict().items()
        }
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
