"""Models of timm, for whoever has it: PE-Core, EVA-02, MobileCLIP 2, ConvNeXt-XXL and others.

A checkpoint folder has the `config.json` that timm writes to the hub (`architecture`,
`pretrained_cfg`) and `model.safetensors`. The feature is the model's output without a classifier.
timm needs torchvision, so it is imported only when such a checkpoint is opened.

Layers are the model's blocks, with what stands between two stages in the block above it. BatchNorm
keeps its statistics in training, and nothing is dropped, so the number of workers does not matter.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import LoraTargets
from img2prompt.errors import UserError
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.json_files import read_json
from img2prompt.model.towers.timm_shape import TimmShape, create
from img2prompt.model.towers.weights import CONFIG, fingerprint, read_tensors

BELOW = ("patch_embed", "stem", "norm_pre", "cls_token", "reg_token", "pos_embed", "dist_token")
"""Modules and parameters below the lowest block; in models with stages, norm_pre is above them."""
POOLING = ("attn_pool", "final_conv")
"""Modules above the top block that are more than a norm."""
MLP = ("mlp", "pwconv")
"""Parts of the names of matrices in an MLP."""


class TimmTower(Tower):
    """A model of timm without its classifier."""

    family = "timm"

    def __init__(self, shape: TimmShape, vision: nn.Module, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.vision = vision
        self._shape, self._fields = shape, fields
        # Each module already has its name below `vision`; tuples keep the lists unregistered.
        self._layers = (nn.ModuleList(_blocks(shape.architecture, vision)),)
        self._below = (_below(vision),)
        self._above = _above(vision)
        pretrained = fields.get("pretrained_cfg", {})
        self.mean = tuple(pretrained.get("mean", (0.485, 0.456, 0.406)))
        self.std = tuple(pretrained.get("std", (0.229, 0.224, 0.225)))
        for part in vision.modules():
            _make_steady(part)
        on_meta = any(tensor.is_meta for tensor in vision.parameters())
        self.base_fingerprint = "" if on_meta else fingerprint(vision.state_dict())

    @classmethod
    def load(cls, folder: Path, config: TowerConfig) -> Self:
        fields = read_json(folder / CONFIG)
        shape = cls.read_shape(folder, config)
        arguments = dict(shape.arguments)
        with torch.device("meta"):
            whole = create(shape.architecture, arguments, int(fields.get("num_classes", 0)))
        vision = create(shape.architecture, arguments)
        shapes = {name: tuple(tensor.shape) for name, tensor in vision.state_dict().items()}
        others = whole.state_dict().keys() - shapes.keys()
        stored = read_tensors(folder, shapes, others, prefixes=())
        kinds = {name: tensor.dtype for name, tensor in vision.state_dict().items()}
        vision.load_state_dict({name: tensor.to(kinds[name]) for name, tensor in stored.items()})
        return cls(shape, vision, fields).eval()

    @classmethod
    def read_shape(cls, folder: Path, config: TowerConfig) -> TimmShape:
        path = folder / CONFIG
        fields = read_json(path)
        architecture, arguments = fields["architecture"], fields.get("model_args", {})
        size = fields.get("pretrained_cfg", {}).get("input_size")
        if not isinstance(size, list) or len(size) != 3 or size[0] != 3 or size[1] != size[2]:
            raise UserError(
                f"{path} has pretrained_cfg.input_size {size!r}; allowed: [3, S, S], colours and "
                "the side of a square"
            )
        if config.image_size not in (0, size[1]) or config.resize_positions:
            raise UserError(
                f"tower.image_size is {config.image_size} and resize_positions "
                f"{config.resize_positions}, and {config.weights} is a model of timm for {size[1]} "
                "pixels; allowed: 0 and off, as their positions differ too much to be interpolated"
            )
        with torch.device("meta"):
            model = create(architecture, arguments)
        return TimmShape(
            depth=len(_blocks(architecture, model)),
            width=_width(model, size[1]),
            size=size[1],
            architecture=architecture,
            arguments=tuple((name, _hashable(arguments[name])) for name in sorted(arguments)),
        )

    @property
    def shape(self) -> TimmShape:
        return self._shape

    @property
    def layers(self) -> nn.ModuleList:
        return self._layers[0]

    @property
    def embeddings(self) -> list[nn.Module]:
        return [self._below[0]]

    @property
    def final_norm(self) -> nn.Module:
        return self._above[0]

    @property
    def pooling_head(self) -> nn.Module:
        return self._above[1]

    def lora_targets(self, layer: int, targets: LoraTargets) -> list[str]:
        """Names of linear layers and 1 x 1 convolutions of a block."""
        names = {module: name for name, module in self.named_modules()}
        matrices = [names[part] for part in self.layers[layer].modules() if _is_matrix(part)]
        attention = [name for name in matrices if not any(part in name for part in MLP)]
        if targets == "both" or not any("attn" in name for name in attention):
            return matrices
        return attention if targets == "attention" else sorted(set(matrices) - set(attention))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        return self

    def encode(self, normalised: Tensor) -> Tensor:
        kind = next(t.dtype for t in self.vision.parameters() if t.is_floating_point())
        return self.vision(normalised.to(kind))

    def recompute_activations(self) -> None:
        self.vision.set_grad_checkpointing(True)  # type: ignore[operator]

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the files of a checkpoint on the hub, without a classifier."""
        fields = {**self._fields, "num_classes": 0}
        (Path(folder) / CONFIG).write_text(json.dumps(fields, indent=2))
        tensors = {
            name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in self.vision.state_dict().items()
        }
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def _blocks(architecture: str, model: nn.Module) -> list[nn.Module]:
    blocks = getattr(model, "blocks", None)
    if blocks is not None:
        return list(blocks.children())
    layers: list[nn.Module] = []
    stages = getattr(model, "stages", nn.Identity())
    for stage in stages.children():
        own = getattr(stage, "blocks", nn.Identity())
        below = [part for part in stage.children() if part is not own]
        for block in own.children():
            layers.append(nn.Sequential(*below, block) if below else block)
            below = []
    if not layers:
        raise UserError(
            f"{architecture!r} of timm has no blocks; allowed: models with `blocks`, or `stages` "
            "of `blocks`"
        )
    return layers


def _below_names(model: nn.Module) -> list[str]:
    return [name for name in BELOW if name != "norm_pre" or not hasattr(model, "stages")]


def _below(model: nn.Module) -> nn.Module:
    """Modules and parameters below the lowest block."""
    below = nn.Module()
    for name in _below_names(model):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module | nn.Parameter):
            setattr(below, name, part)
    return below


def _above(model: nn.Module) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Norms above the top block, and what pools."""
    inner = ("blocks", "stages", *_below_names(model))
    parts = {name: part for name, part in model.named_children() if name not in inner}
    pooling = nn.ModuleList([parts.pop(name) for name in POOLING if name in parts])
    return nn.ModuleList(parts.values()), pooling


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _is_matrix(part: nn.Module) -> bool:
    if isinstance(part, nn.Conv2d):
        return part.kernel_size == (1, 1) and part.groups == 1
    return isinstance(part, nn.Linear)


def _make_steady(part: Any) -> None:
    """Drop nothing, and let LoRA reach a fused projection whose biases are apart."""
    if isinstance(part, nn.Dropout):
        part.p = 0.0
    if hasattr(part, "drop_prob"):
        part.drop_prob = 0.0
    if hasattr(part, "qkv_bias_separate"):
        part.qkv_bias_separate = True


def _width(model: nn.Module, size: int) -> int:
    with torch.device("meta"):
        return model.eval()(torch.zeros(1, 3, size, size)).shape[1]
