"""Vision transformers of the transformers library: what its families share."""

import copy
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import LoraTargets
from img2prompt.errors import UserError
from img2prompt.model.towers.pretrained import PretrainedTower, side_of
from img2prompt.model.towers.vit_shape import (
    Pooling,
    VitShape,
    attention_matrices,
    mlp_matrices,
)
from img2prompt.model.towers.weights import POSITIONS, resize_positions


class VitTower(PretrainedTower):
    """A vision transformer; the class variables are those of CLIP where others differ."""

    class_token: ClassVar[bool] = True
    patch_bias: ClassVar[bool] = True
    input_norm: ClassVar[bool] = False
    pooling: ClassVar[Pooling] = "class token"
    """Fields of `VitShape` that are the same for all towers of a family."""
    layers_name: ClassVar[str] = "encoder.layers"
    final_norm_name: ClassVar[str] = "post_layernorm"
    attention_names: ClassVar[tuple[str, ...]] = tuple(
        f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    )
    mlp_names: ClassVar[tuple[str, ...]] = ("mlp.fc1", "mlp.fc2")
    gated_mlp_names: ClassVar[tuple[str, ...]] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    """Names of modules, those of matrices below a layer."""
    positions_name: ClassVar[str] = POSITIONS
    """Name of the position embeddings; empty for rotary ones."""
    smooth_positions: ClassVar[bool] = False
    """Positions are interpolated with antialiasing, as the family was trained."""

    @classmethod
    def shape_of(cls, config: Any) -> VitShape:
        return VitShape(
            depth=config.num_hidden_layers,
            width=config.hidden_size,
            token=config.hidden_size,
            mlp=config.intermediate_size,
            heads=config.num_attention_heads,
            activation=config.hidden_act,
            attention=attention_matrices(config.hidden_size, (True, True, True, True)),
            mlp_matrices=mlp_matrices(config.hidden_size, config.intermediate_size),
            size=side_of(config.image_size),
            patch=side_of(config.patch_size),
            class_token=cls.class_token,
            positions=bool(cls.positions_name),
            patch_bias=cls.patch_bias,
            input_norm=cls.input_norm,
            pooling=cls.pooling,
        )

    @classmethod
    def resized(cls, tensors: dict[str, Tensor], stored: Any, wanted: Any) -> dict[str, Tensor]:
        shape, before = cls.shape_of(wanted), cls.shape_of(stored)
        if shape.size == before.size or not cls.positions_name:
            return tensors
        table = tensors[cls.positions_name]
        rows = resize_positions(
            table.reshape(-1, shape.token),
            shape.size // shape.patch,
            shape.class_token,
            antialias=cls.smooth_positions,
        )
        return tensors | {cls.positions_name: rows.reshape(*table.shape[:-2], *rows.shape)}

    @classmethod
    def check_config(cls, path: Path, config: Any) -> None:
        super().check_config(path, config)
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"{path} has num_attention_heads {config.num_attention_heads}; allowed: a divisor "
                f"of hidden_size, {config.hidden_size}"
            )

    @classmethod
    def at_size(cls, stored: Any, config: TowerConfig) -> Any:
        shape = cls.shape_of(stored)
        if config.resize_positions and not cls.positions_name:
            raise UserError(
                f"tower.resize_positions is on, and {config.weights} has rotary positions: leave "
                "it off; tower.image_size alone is enough"
            )
        if config.image_size in (0, shape.size):
            return stored
        if config.image_size % shape.patch:
            raise UserError(
                f"tower.image_size is {config.image_size}; "
                f"allowed: a multiple of the patch, {shape.patch}"
            )
        if cls.positions_name and not config.resize_positions:
            raise UserError(
                f"tower.image_size is {config.image_size}, and {config.weights} was made for "
                f"{shape.size}: leave it at 0, or add --tower.resize-positions to interpolate "
                "position embeddings"
            )
        wanted = copy.deepcopy(stored)
        cls.set_size(wanted, config.image_size)
        return wanted

    @classmethod
    def set_size(cls, config: Any, size: int) -> None:
        """Set the side of pictures in a config of the family."""
        config.image_size = size

    @property
    def shape(self) -> VitShape:
        assert isinstance(self._shape, VitShape)
        return self._shape

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.vision.get_submodule(self.layers_name)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def embeddings(self) -> list[nn.Module]:
        return [self.vision.get_submodule("embeddings")]

    @property
    def final_norm(self) -> nn.Module:
        return self.vision.get_submodule(self.final_norm_name)

    def lora_targets(self, layer: int, targets: LoraTargets) -> list[str]:
        gated = len(self.shape.mlp_matrices) == 3
        mlp = self.gated_mlp_names if gated else self.mlp_names
        names = {
            "attention": self.attention_names,
            "mlp": mlp,
            "both": (*self.attention_names, *mlp),
        }
        return [f"vision.{self.layers_name}.{layer}.{name}" for name in names[targets]]


def fix_mask_token(embeddings: nn.Module) -> None:
    """Make the mask token, which only pre-training reads, a tensor that never learns."""
    token = getattr(embeddings, "mask_token", None)
    if token is not None:
        del embeddings.mask_token
        embeddings.register_buffer("mask_token", token.detach())
