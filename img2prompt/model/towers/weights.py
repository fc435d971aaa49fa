"""Strict loading of CLIP vision weights.

Every tensor of the tower must be in the checkpoint, with its size, and nothing unknown beside it:
a loader that skips what does not fit leaves random position embeddings behind, as the published
one did at another resolution. Read are whole CLIP checkpoints and vision-only ones, with the
prefix `vision_model.` (all of transformers 4, and towers with a projection) or without it (what
transformers 5 writes for CLIPVisionModel).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from img2prompt.config.tower import TowerConfig
from img2prompt.errors import UserError

DEMO = Path(__file__).parents[1] / "assets" / "demo-tower"
PREFIX = "vision_model."
POSITIONS = "embeddings.position_embedding.weight"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""In order of preference; each may also be split, with a `.index.json` beside it."""

Shapes = Mapping[str, tuple[int, ...]]


def load_tower_weights(config: TowerConfig) -> tuple[CLIPVisionConfig, dict[str, Tensor]]:
    """The vision config and float32 tensors, named as in transformers' CLIPVisionModel.

    Raises UserError when the checkpoint is absent or unreadable, when tensors are missing, unknown
    or wrongly sized (all of them are listed), or when the resolution is another one and
    `resize_positions` is off.
    """
    folder = find_checkpoint(config)
    vision_config = _read_config(folder)
    found = _read_tensors(folder)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in found) else ""
    expected = {prefix + name: shape for name, shape in _shapes(vision_config).items()}
    _check_tensors(folder, expected, {name: tuple(t.shape) for name, t in found.items()})
    tensors = {name.removeprefix(prefix): tensor.float() for name, tensor in found.items()}
    side, patch = sides(vision_config)
    if config.image_size not in (0, side):
        _check_resolution(config, side, patch)
        tensors[POSITIONS] = resize_positions(tensors[POSITIONS], config.image_size // patch)
        vision_config.image_size = config.image_size
    return vision_config, tensors


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of names, shapes and values as float32, whatever dtype they are kept in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()[:16]


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings (1 + G * G, D) -> (1 + grid * grid, D), the class token's untouched.

    Bicubic, as transformers' `interpolate_pos_encoding` (from DINO, arXiv 2104.14294).
    """
    old_grid = round((len(positions) - 1) ** 0.5)
    square = positions[1:].T.reshape(1, -1, old_grid, old_grid)
    resized = functional.interpolate(square, size=(grid, grid), mode="bicubic")
    return torch.cat([positions[:1], resized.flatten(2)[0].T])


def find_checkpoint(config: TowerConfig) -> Path:
    """Folder of the weights: the demo's, a local one, or a hub name in the local cache."""
    if config.weights == "demo":
        if not (DEMO / "config.json").exists():
            raise UserError(
                f"the demo tower is not in {DEMO}: make it with `python jobs/tower.py`, "
                "or give --tower.weights a checkpoint folder"
            )
        return DEMO
    folder = Path(config.weights).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or config.weights.startswith((".", "/", "~")):
        raise UserError(f"tower.weights is {config.weights!r}, and no such folder is there")
    return _from_hub(config.weights, download=config.download)


def _from_hub(name: str, *, download: bool) -> Path:
    try:
        for suffix in ("safetensors", "bin"):
            patterns = ["config.json", f"*.{suffix}", f"*.{suffix}.index.json"]
            folder = Path(
                snapshot_download(name, local_files_only=not download, allow_patterns=patterns)
            )
            if any(folder.glob(f"*.{suffix}")):
                return folder
    except (OSError, ValueError) as error:
        raise UserError(
            f"tower.weights is {name!r}: no such folder, and not in the local Hugging Face cache "
            f"({type(error).__name__}). Give a checkpoint folder, or fetch it from the hub with "
            "--tower.download"
        ) from error
    raise UserError(f"{folder} holds no weights: fetch {name!r} again with --tower.download")


def _read_config(folder: Path) -> CLIPVisionConfig:
    path = folder / "config.json"
    found = _read_json(path)
    fields = found.get("vision_config", found)
    kind = found.get("model_type")
    if kind not in ("clip", "clip_vision_model") or not isinstance(fields, dict):
        raise UserError(f"{path} has model_type {kind!r}; allowed: clip, clip_vision_model")
    try:
        config = CLIPVisionConfig.from_dict({**fields, "dtype": "float32"})
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no CLIP vision config: {error}") from error
    sides = (config.image_size, config.patch_size)
    if not all(isinstance(side, int) for side in sides) or config.num_channels != 3:
        raise UserError(
            f"{path} has image_size {sides[0]}, patch_size {sides[1]} and num_channels "
            f"{config.num_channels}; allowed: one number (square), one number, and 3"
        )
    return config


def sides(config: CLIPVisionConfig) -> tuple[int, int]:
    """Sides of a picture and of a patch in pixels."""
    side, patch = config.image_size, config.patch_size
    assert isinstance(side, int)
    assert isinstance(patch, int)
    return side, patch


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a checkpoint folder") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}; allowed: a JSON object")
    return found


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            tensors |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)
        except Exception as error:  # readers fail in many ways on foreign bytes
            raise UserError(f"{path} cannot be read as weights: {error}") from error
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = _read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise UserError(f"{index} names no files: it needs a `weight_map`")
            return [folder / str(shard) for shard in sorted(set(shards.values()))]
    raise UserError(f"{folder} holds no weights; allowed: {', '.join(WEIGHT_FILES)}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if not _is_beside(name)]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}


def _read_bin(path: Path) -> dict[str, Tensor]:
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise TypeError("it holds other things than tensors by name")
    return {name: tensor for name, tensor in tensors.items() if not _is_beside(name)}


def _is_beside(name: str) -> bool:
    """Parts of a CLIP checkpoint that are not the vision tower's."""
    others = ("logit_scale", "text_projection.weight", "visual_projection.weight")
    return name in others or name.startswith("text_model.") or name.endswith(".position_ids")


def _shapes(config: CLIPVisionConfig) -> Shapes:
    with torch.device("meta"):
        tensors = CLIPVisionModel(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_tensors(folder: Path, expected: Shapes, found: Shapes) -> None:
    lines = [f"missing: {name} {expected[name]}" for name in expected if name not in found]
    lines += [f"unknown: {name} {found[name]}" for name in found if name not in expected]
    lines += [
        f"wrong size: {name} is {found[name]}, its config.json needs {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    if lines:
        raise UserError(f"{folder} is not a CLIP vision tower:\n  " + "\n  ".join(lines))


def _check_resolution(config: TowerConfig, side: int, patch: int) -> None:
    if config.image_size % patch:
        raise UserError(
            f"tower.image_size is {config.image_size}; allowed: a multiple of the patch, {patch}"
        )
    if not config.resize_positions:
        raise UserError(
            f"tower.image_size is {config.image_size}, and {config.weights} was made for {side}: "
            "leave it at 0, or add --tower.resize-positions to interpolate position embeddings"
        )
