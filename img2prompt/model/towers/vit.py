"""Vision transformers of the transformers library: what its CLIP and SigLIP models share."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.initialization import no_init_weights

from img2prompt.config.tower import TowerConfig
from img2prompt.errors import UserError
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.json_files import read_json
from img2prompt.model.towers.vit_shape import Pooling, VitShape
from img2prompt.model.towers.weights import (
    CONFIG,
    POSITIONS,
    Shapes,
    fingerprint,
    read_tensors,
    resize_positions,
)

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")

VisionConfig = CLIPVisionConfig | SiglipVisionConfig
VisionModel = CLIPVisionModel | SiglipVisionModel


class VitTower(Tower):
    """A tower around `vision`, a model of transformers; its layers are `vision.encoder.layers`."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of `model_type` in `config.json`: of a whole model with its text side, or this one."""
    config_class: ClassVar[type[VisionConfig]]
    model_class: ClassVar[type[VisionModel]]
    other_tensors: ClassVar[tuple[str, ...]]
    """Tensors of a whole model that are no part of the tower, beside those of its text side."""
    class_token: ClassVar[bool]
    patch_bias: ClassVar[bool]
    input_norm: ClassVar[bool]
    pooling: ClassVar[Pooling]
    """Fields of `VitShape` that are the same for all towers of a family."""

    def __init__(self, vision: VisionModel) -> None:
        super().__init__()
        self.vision = vision
        self._shape = self.shape_of(vision.config)
        self.base_fingerprint = fingerprint(vision.state_dict())

    @classmethod
    def shape_of(cls, config: VisionConfig) -> VitShape:
        """Return the sizes of the tower that a vision config describes."""
        return VitShape(
            depth=config.num_hidden_layers,
            width=config.hidden_size,
            mlp=config.intermediate_size,
            heads=config.num_attention_heads,
            activation=config.hidden_act,
            size=side_of(config.image_size),
            patch=side_of(config.patch_size),
            class_token=cls.class_token,
            patch_bias=cls.patch_bias,
            input_norm=cls.input_norm,
            pooling=cls.pooling,
        )

    @classmethod
    def fresh(cls, fields: Mapping[str, Any], seed: int) -> Self:
        """Draw an untrained tower from `seed`; `fields` are those of the family's config class."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(cls._build(cls.config_class(**fields)))

    @classmethod
    def load(cls, folder: Path, config: TowerConfig) -> Self:
        stored = cls.read_config(folder)
        wanted = cls._at_size(stored, config)
        tensors = read_tensors(folder, cls._tensor_shapes(stored), cls.other_tensors)
        shape = cls.shape_of(wanted)
        if shape.size != stored.image_size:
            grid = shape.size // shape.patch
            tensors[POSITIONS] = resize_positions(tensors[POSITIONS], grid, shape.class_token)
        with no_init_weights():
            vision = cls._build(wanted)
        vision.load_state_dict(tensors)
        return cls(vision).eval()

    @classmethod
    def read_shape(cls, folder: Path, config: TowerConfig) -> VitShape:
        return cls.shape_of(cls._at_size(cls.read_config(folder), config))

    @classmethod
    def read_config(cls, folder: Path) -> VisionConfig:
        """Read and check the vision part of a `config.json`; a bad one is a UserError."""
        path = folder / CONFIG
        fields = read_json(path)
        fields = fields.get("vision_config", fields)
        if not isinstance(fields, dict):
            raise UserError(f"{path} has a vision_config that is no JSON object")
        try:
            config = cls.config_class.from_dict({**fields, "dtype": "float32"})
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a valid {cls.family} vision config: {error}") from error
        _check_config(path, config)
        return config

    @property
    def shape(self) -> VitShape:
        return self._shape

    @property
    def layers(self) -> nn.ModuleList:
        return self.vision.encoder.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.vision.post_layernorm

    def lora_targets(self, layer: int) -> list[str]:
        return [f"vision.encoder.layers.{layer}.self_attn.{name}" for name in ATTENTION]

    def encode(self, normalised: Tensor) -> Tensor:
        return self.vision(pixel_values=normalised).pooler_output

    def recompute_activations(self) -> None:
        self.vision.activation_checkpointing_enable()

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        config = copy.deepcopy(self.vision.config)
        config.dtype, config.architectures = dtype, [self.model_class.__name__]
        config.save_pretrained(folder)
        tensors = {name: t.to(dtype).contiguous() for name, t in self.vision.state_dict().items()}
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def _build(cls, config: VisionConfig) -> VisionModel:
        return cls.model_class._from_config(config, attn_implementation="sdpa", dtype=torch.float32)

    @classmethod
    def _tensor_shapes(cls, config: VisionConfig) -> Shapes:
        with torch.device("meta"), no_init_weights():
            tensors = cls._build(config).state_dict()
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    @classmethod
    def _at_size(cls, stored: VisionConfig, config: TowerConfig) -> VisionConfig:
        """The config at the resolution that the user asks for."""
        shape = cls.shape_of(stored)
        if config.image_size in (0, shape.size):
            return stored
        if config.image_size % shape.patch:
            raise UserError(
                f"tower.image_size is {config.image_size}; "
                f"allowed: a multiple of the patch, {shape.patch}"
            )
        if not config.resize_positions:
            raise UserError(
                f"tower.image_size is {config.image_size}, and {config.weights} was made for "
                f"{shape.size}: leave it at 0, or add --tower.resize-positions to interpolate "
                "position embeddings"
            )
        wanted = copy.deepcopy(stored)
        wanted.image_size = config.image_size
        return wanted


def side_of(value: object) -> int:
    """A side in pixels, which transformers' types allow to be a pair as well."""
    assert isinstance(value, int)
    return value


def _check_config(path: Path, config: VisionConfig) -> None:
    sides = (config.image_size, config.patch_size)
    if not all(isinstance(side, int) for side in sides) or config.num_channels != 3:
        raise UserError(
            f"{path} has image_size {sides[0]}, patch_size {sides[1]} and num_channels "
            f"{config.num_channels}; allowed: one number (square), one number, and 3"
        )
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"{path} has num_attention_heads {config.num_attention_heads}; allowed: a divisor of "
            f"hidden_size, {config.hidden_size}"
        )
