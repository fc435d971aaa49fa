"""Towers around vision models of the transformers library: config, strict loading and saving."""

import copy
import itertools
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from img2prompt.config.tower import TowerConfig
from img2prompt.errors import UserError
from img2prompt.model.towers.base import Tower, TowerShape
from img2prompt.model.towers.json_files import read_json
from img2prompt.model.towers.weights import (
    CONFIG,
    PREFIX,
    Shapes,
    fingerprint,
    read_tensors,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANDOM: Mapping[str, float | None] = {
    "attention_dropout": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_dropout_prob": 0.0,
    "pos_embed_jitter": None,
    "pos_embed_rescale": None,
    "pos_embed_shift": None,
}
"""Settings of transformers that draw random numbers in training. They are turned off, so that the
number of workers changes nothing; what a step draws is a setting of this package."""


class PretrainedTower(Tower):
    """A tower around `vision`, a model of transformers."""

    config_class: ClassVar[type[PreTrainedConfig]]
    model_name: ClassVar[str]
    """Class of `vision` in transformers. Its import takes seconds; a shape is read without it."""
    other_tensors: ClassVar[tuple[str, ...]] = ()
    """Tensors of a whole model that are no part of the tower, beside those of its text side."""
    prefixes: ClassVar[tuple[str, ...]] = (PREFIX,)
    """Names of the tower in a whole model."""
    attention_kernel: ClassVar[str] = "sdpa"
    """Name in transformers of how attention is computed."""

    def __init__(self, vision: "PreTrainedModel") -> None:
        super().__init__()
        self.vision = vision
        self._shape = self.shape_of(vision.config)
        self.base_fingerprint = fingerprint(vision.state_dict())

    @classmethod
    def model_class(cls) -> "type[PreTrainedModel]":
        """Import the class of `vision`."""
        return getattr(transformers, cls.model_name)

    @classmethod
    @abstractmethod
    def shape_of(cls, config: Any) -> TowerShape:
        """Return the sizes of the tower that a vision config describes."""

    @classmethod
    @abstractmethod
    def at_size(cls, stored: Any, config: TowerConfig) -> Any:
        """Return the vision config at the resolution that the user asks for.

        Raises:
            UserError: the tower does not work at this resolution.
        """

    @classmethod
    def resized(cls, tensors: dict[str, Tensor], stored: Any, wanted: Any) -> dict[str, Tensor]:
        """Return the tensors for another resolution."""
        return tensors

    @classmethod
    def renamed(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint by the names that transformers uses now."""
        return tensors

    @classmethod
    def fresh(cls, fields: Mapping[str, Any], seed: int) -> Self:
        """Draw an untrained tower from `seed`; `fields` are those of the family's config class."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(cls.build(cls.config_class(**fields)))

    @classmethod
    def load(cls, folder: Path, config: TowerConfig) -> Self:
        stored = cls.read_config(folder)
        wanted = cls.at_size(stored, config)
        tensors = read_tensors(
            folder, cls._tensor_shapes(stored), cls.other_tensors, cls.prefixes, cls.renamed
        )
        tensors = cls.resized(tensors, stored, wanted)
        with no_init_weights():
            vision = cls.build(wanted)
        vision.load_state_dict(tensors)
        return cls(vision).eval()

    @classmethod
    def read_shape(cls, folder: Path, config: TowerConfig) -> TowerShape:
        return cls.shape_of(cls.at_size(cls.read_config(folder), config))

    @classmethod
    def read_config(cls, folder: Path) -> Any:
        """Read and check the vision part of a `config.json`; a bad one is a UserError."""
        path = folder / CONFIG
        fields = cls.vision_fields(path, read_json(path))
        try:
            config = cls.config_class.from_dict({**fields, "dtype": "float32"})
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a valid {cls.family} vision config: {error}") from error
        cls.check_config(path, config)
        return config

    @classmethod
    def vision_fields(cls, path: Path, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of the family's config class in those of a `config.json`."""
        fields = fields.get("vision_config", fields)
        if not isinstance(fields, dict):
            raise UserError(f"{path} has a vision_config that is no JSON object")
        return fields

    @classmethod
    def check_config(cls, path: Path, config: Any) -> None:
        """Raise a UserError for a config that transformers accepts and the family does not."""
        sides = (config.image_size, config.patch_size)
        if not all(isinstance(side, int) for side in sides) or config.num_channels != 3:
            raise UserError(
                f"{path} has image_size {sides[0]}, patch_size {sides[1]} and num_channels "
                f"{config.num_channels}; allowed: one number (square), one number, and 3"
            )

    def encode(self, normalised: Tensor) -> Tensor:
        return self.vision(pixel_values=normalised).pooler_output

    def recompute_activations(self) -> None:
        self.vision.activation_checkpointing_enable()

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        config = copy.deepcopy(self.vision.config)
        config.dtype, config.architectures = dtype, [self.model_name]
        config.save_pretrained(folder)
        tensors = {name: t.to(dtype).contiguous() for name, t in self.vision.state_dict().items()}
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def build(cls, config: Any) -> "PreTrainedModel":
        """Build the model with random weights; nothing in its layers is random in training."""
        config = copy.deepcopy(config)
        parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
        for part, (name, off) in itertools.product(parts, RANDOM.items()):
            if hasattr(part, name):
                setattr(part, name, off)
        kernel = cls.attention_kernel
        return cls.model_class()._from_config(
            config, attn_implementation=kernel, dtype=torch.float32
        )

    @classmethod
    def _tensor_shapes(cls, config: Any) -> Shapes:
        cls.model_class()  # not imported in the contexts below, which change what modules see
        with torch.device("meta"), no_init_weights():
            tensors = cls.build(config).state_dict()
        return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def side_of(value: object) -> int:
    """A side in pixels, which transformers' types allow to be a pair as well."""
    assert isinstance(value, int)
    return value
