"""Open the tower that a config names, or only its shape. A new family is one entry in FAMILIES."""

import hashlib
import importlib
import json
from importlib.metadata import version
from pathlib import Path

from img2prompt.config.tower import TowerConfig
from img2prompt.errors import UserError
from img2prompt.model.towers.base import Tower, TowerShape
from img2prompt.model.towers.efficientnet_lite import LITE2, PACKAGE, EfficientNetLiteTower
from img2prompt.model.towers.json_files import read_json
from img2prompt.model.towers.side_by_side import SideBySideShape, SideBySideTower
from img2prompt.model.towers.timm_models import TimmTower
from img2prompt.model.towers.weights import CONFIG, FRESH, find_checkpoint, find_config

FAMILIES = {
    "clip": "clip.ClipTower",
    "clip_vision_model": "clip.ClipTower",
    "siglip": "siglip.SiglipTower",
    "siglip_vision_model": "siglip.SiglipTower",
    "dinov2": "dinov2.Dinov2Tower",
    "dinov2_with_registers": "dinov2.Dinov2RegistersTower",
    "dinov3_vit": "dinov3.Dinov3Tower",
    "blip-2": "blip2.Blip2Tower",
    "convnextv2": "convnext.ConvNextTower",
    "efficientnet-lite": "efficientnet_lite.EfficientNetLiteTower",
}
"""Module and class by `model_type`: that of a whole model with its text side, or of a tower. A
module is imported when a checkpoint needs it, as the models of transformers take seconds."""
REFUSED = {
    "siglip2": "it takes pictures of any shape as lists of patches (NaFlex), and shards hold "
    "squares: use a SigLIP 2 of a fixed resolution, such as google/siglip2-large-patch16-256",
}
"""Reasons by `model_type`."""

DEMO_SHAPE = {
    "hidden_size": 160,
    "intermediate_size": 640,
    "num_hidden_layers": 7,
    "num_attention_heads": 5,
    "image_size": 64,
    "patch_size": 8,
}
"""CLIP config of the demo tower: 2.2M parameters, 4.4 MB in float16."""


def open_tower(config: TowerConfig, seed: int = 0) -> Tower:
    """Load the tower that a config names; `fresh` is drawn from `seed`.

    Raises:
        UserError: the weights are absent, incomplete, or of another family, shape or resolution.
    """
    if config.beside:
        return SideBySideTower([open_tower(member, seed) for member in config.members])
    if config.weights == FRESH:
        from img2prompt.model.towers.clip import ClipTower

        return ClipTower.fresh(DEMO_SHAPE, seed)
    if config.weights == LITE2:
        return EfficientNetLiteTower.load_packaged(config)
    folder = find_checkpoint(config)
    return _family(folder).load(folder, config)


def read_shape(config: TowerConfig) -> TowerShape:
    """Read the sizes of the tower that a config names, from its `config.json` alone.

    Raises:
        UserError: the checkpoint is absent, or of another family or resolution.
    """
    if config.beside:
        return SideBySideShape.of([read_shape(member) for member in config.members])
    if config.weights == FRESH:
        from img2prompt.model.towers.clip import ClipTower

        return ClipTower.shape_of(ClipTower.config_class.from_dict(DEMO_SHAPE))
    if config.weights == LITE2:
        return EfficientNetLiteTower.packaged_shape(config)
    folder = find_config(config)
    return _family(folder).read_shape(folder, config)


def checkpoint_stamp(config: TowerConfig) -> str:
    """Identify a checkpoint by the names, sizes and times of its files, without reading them.

    Equal stamps are the same weights; another stamp may be a copy of them.
    """
    if config.beside:
        return " ".join(checkpoint_stamp(member) for member in config.members)
    if config.weights == FRESH:
        return FRESH
    if config.weights == LITE2:
        return f"{LITE2} {version(PACKAGE)}"
    folder = find_checkpoint(config)
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    stamp = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
    return hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16]


def _family(folder: Path) -> type[Tower]:
    """The family that the `model_type` of a checkpoint names; timm names an `architecture`."""
    path = folder / CONFIG
    fields = read_json(path)
    model_type = fields.get("model_type")
    if model_type is None and isinstance(fields.get("architecture"), str):
        return TimmTower
    if model_type in REFUSED:
        raise UserError(f"{path} has model_type {model_type!r}: {REFUSED[model_type]}")
    if model_type not in FAMILIES:
        raise UserError(
            f"{path} has model_type {model_type!r}; allowed: {', '.join(FAMILIES)}, or an "
            "`architecture` of timm"
        )
    module, name = FAMILIES[model_type].split(".")
    return getattr(importlib.import_module(f"img2prompt.model.towers.{module}"), name)
