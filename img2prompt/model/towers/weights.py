"""Strict reading of a vision checkpoint: a folder with `config.json` and weight files.

Every tensor of the tower must be in the checkpoint, with its size, and nothing unknown beside it:
a loader that skips what does not fit leaves random position embeddings behind, as the published
one did at another resolution. Whole image-text checkpoints are read as well as vision-only ones,
with the prefix `vision_model.` (all of transformers 4, and towers with a projection) or without it
(vision models of transformers 5).
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from torch.nn import functional

from img2prompt.config.tower import TowerConfig
from img2prompt.errors import UserError
from img2prompt.model.tensor_checks import require_finite_weights, shortened
from img2prompt.model.towers.weight_files import read_weights

DEMO = Path(__file__).parents[1] / "assets" / "demo-tower"
CONFIG = "config.json"
PREFIX = "vision_model."
POSITIONS = "embeddings.position_embedding.weight"
OPENCLIP = "visual."
"""Prefix of the vision tower in OpenCLIP's checkpoints."""

Shapes = Mapping[str, tuple[int, ...]]
STAMP = "tower.json"
"""File beside features with the stamp of the checkpoint that made them."""
FRESH = "fresh"
"""Value of `tower.weights` for an untrained tower of the demo's shape."""


def read_tensors(
    source: Path,
    expected: Shapes,
    others: Collection[str],
    prefixes: Collection[str] = (PREFIX,),
    renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> dict[str, Tensor]:
    """Read the tensors named in `expected`, as float32 and under these names.

    `source` is a checkpoint folder, or one file of weights. Tensors of the text side and those
    named in `others` are skipped; a name that ends with a dot stands for all below it. All names
    may begin with one of `prefixes`. `renamed` changes the names of older versions.

    Raises:
        UserError: the checkpoint has no readable weights, or tensors are missing, unknown or
            wrongly sized (the first of each kind are listed), or have non-finite values.
    """
    tensors = renamed(read_weights(source, lambda name: _skipped(name, others)))
    used = (prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors))
    prefix = next(used, "")
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_tensors(source, {prefix + name: shape for name, shape in expected.items()}, stored)
    require_finite_weights(tensors, str(source))
    return {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items()}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of names, shapes and values as float32, whatever dtype they are kept in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()[:16]


def resize_positions(
    positions: Tensor, grid: int, class_token: bool, *, antialias: bool = False
) -> Tensor:
    """Interpolate the position embeddings (G * G, D) of a grid to (grid * grid, D).

    With a class token, its row comes first and is kept. Bicubic, as transformers'
    `interpolate_pos_encoding` (from DINO, arXiv 2104.14294).
    """
    first, rest = positions[: int(class_token)], positions[int(class_token) :]
    old_grid = round(len(rest) ** 0.5)
    square = rest.T.reshape(1, -1, old_grid, old_grid)
    resized = functional.interpolate(square, size=(grid, grid), mode="bicubic", antialias=antialias)
    return torch.cat([first, resized.flatten(2)[0].T])


def find_checkpoint(config: TowerConfig) -> Path:
    """Folder of config and weights: the demo's, a local one, or a hub name in the local cache."""
    folder = _local_folder(config)
    if folder is not None:
        return folder
    for suffix in ("safetensors", "bin"):
        folder = _from_hub(config, [CONFIG, f"*.{suffix}", f"*.{suffix}.index.json"])
        if any(folder.glob(f"*.{suffix}")):
            return folder
    raise UserError(
        f"{folder} holds no weights: fetch {config.weights!r} again with --tower.download"
    )


def find_config(config: TowerConfig) -> Path:
    """Folder with the `config.json` of a checkpoint; no weights are fetched from the hub."""
    return _local_folder(config) or _from_hub(config, [CONFIG])


def _local_folder(config: TowerConfig) -> Path | None:
    """None for a hub name."""
    if config.weights == "demo":
        if not (DEMO / CONFIG).exists():
            raise UserError(
                f"the demo tower is not in {DEMO}: make it with `python jobs/tower.py`, "
                "or give --tower.weights a checkpoint folder"
            )
        return DEMO
    folder = Path(config.weights).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or config.weights.startswith((".", "/", "~")):
        raise UserError(f"tower.weights is {config.weights!r}, and that folder does not exist")
    return None


def _from_hub(config: TowerConfig, patterns: Sequence[str]) -> Path:
    try:
        folder = snapshot_download(
            config.weights, local_files_only=not config.download, allow_patterns=list(patterns)
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"tower.weights is {config.weights!r}: no such folder, and not in the local Hugging "
            f"Face cache ({type(error).__name__}). Give a checkpoint folder, or fetch it from the "
            "hub with --tower.download"
        ) from error
    return Path(folder)


def _skipped(name: str, others: Collection[str] = ()) -> bool:
    """Whether a tensor is of the text side, an index that newer versions leave out, or named."""
    folders = ("text_model.", *(other for other in others if other.endswith(".")))
    return name in others or name.startswith(folders) or name.endswith(".position_ids")


def _check_tensors(source: Path, expected: Shapes, stored: Shapes) -> None:
    _refuse_openclip(source, stored)
    missing = [f"missing: {name} {expected[name]}" for name in expected if name not in stored]
    unknown = [f"unknown: {name} {stored[name]}" for name in stored if name not in expected]
    wrong = [
        f"wrong size: {name} is {stored[name]}, its config.json needs {expected[name]}"
        for name in expected
        if name in stored and stored[name] != expected[name]
    ]
    lines = [line for kind in (missing, unknown, wrong) for line in shortened(kind)]
    if lines:
        raise UserError(
            f"{source} does not hold the vision tower that its config.json describes:\n  "
            + "\n  ".join(lines)
        )


def _refuse_openclip(source: Path, stored: Shapes) -> None:
    visual = sum(name.startswith(OPENCLIP) for name in stored)
    if visual:
        raise UserError(
            f"{source} has OpenCLIP's tensor names ({visual} begin with {OPENCLIP!r}); allowed: "
            "those of transformers. Give the model in transformers' format (config.json and "
            "model.safetensors), which many OpenCLIP repositories on the hub hold as well"
        )
