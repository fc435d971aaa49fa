"""Find a diffusers checkpoint, identify it, and load it strictly.

diffusers draws tensors that a checkpoint lacks from a random generator and only logs it, so models
are loaded one by one here, and a missing tensor is an error.

diffusers is imported inside functions: it is an extra, and its import takes seconds.
"""

import hashlib
import importlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from img2prompt.config.generate import GenerateConfig
from img2prompt.errors import UserError

logger = logging.getLogger(__name__)

INDEX = "model_index.json"
_PLAIN_WEIGHTS = re.compile(r"[^.]+\.(safetensors|bin)")
_SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".bin", ".gguf")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SHOWN = 5
"""Tensors that a message names."""


def check_installed() -> None:
    """Check that the extra `generate` is installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("diffusers") is None:
        raise UserError(
            "pictures are made by the package diffusers: install it with "
            "pip install 'img2prompt[generate]'"
        )


def quieten_libraries() -> None:
    """Turn off the progress bars and warnings of diffusers and transformers in this process.

    Every actor would say that torchvision is missing, which nothing here needs. What matters of
    their warnings, tensors that are missing, is an error here.
    """
    for library in ("transformers", "diffusers"):
        library_logging = importlib.import_module(f"{library}.utils.logging")
        library_logging.set_verbosity_error()
        library_logging.disable_progress_bar()


def find_checkpoint(config: GenerateConfig) -> Path:
    """Return the folder of a pipeline: a local one, or a hub name's in the local cache.

    Raises:
        UserError: no weights are named, or they are absent or not a diffusers pipeline.
    """
    if not config.weights:
        raise UserError(
            "weights is empty: name a diffusers pipeline with --weights, a folder with a "
            f"{INDEX} or a hub name"
        )
    path = Path(config.weights).expanduser()
    if path.is_file() or config.weights.endswith(_SINGLE_FILES):
        raise UserError(
            f"weights is {config.weights!r}, a single file; allowed: a diffusers folder. Convert "
            "it with StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    is_path = path.is_dir() or config.weights.startswith((".", "/", "~"))
    folder = path if is_path else _from_hub(config)
    _components(folder)
    return folder


def _from_hub(config: GenerateConfig) -> Path:
    from diffusers import DiffusionPipeline

    pipeline_class: Any = DiffusionPipeline
    options = {"local_files_only": not config.download, "variant": config.variant or None}
    try:
        return Path(pipeline_class.download(config.weights, **options))
    except (OSError, ValueError) as error:
        raise UserError(
            f"weights is {config.weights!r}: no such folder, and not in the local Hugging Face "
            f"cache ({type(error).__name__}). Give the folder of a diffusers pipeline, or fetch it "
            "from the hub with --download"
        ) from error


def checkpoint_digest(folder: Path, variant: str) -> str:
    """Return 16 hex digits of the bytes of every file that `load_models` and diffusers read."""
    digest = hashlib.sha256()
    for path in _files(folder, variant):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()[:16]


def load_models(folder: Path, variant: str, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Load the models of a pipeline by component; its other parts have no weights.

    Raises:
        UserError: a component is unknown, unreadable or lacks tensors.
    """
    models = {}
    for name, (library, kind) in _components(folder).items():
        model_class = _class_of(folder, library, kind)
        if issubclass(model_class, nn.Module):
            models[name] = _load_model(folder / name, model_class, variant, dtype)
    return models


def _load_model(folder: Path, model_class: Any, variant: str, dtype: torch.dtype) -> nn.Module:
    weights = _weights(folder, variant)
    _refuse_pointers(weights)
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    if variant and any(f".{variant}" in path.name for path in weights):
        options["variant"] = variant
    try:
        model, report = model_class.from_pretrained(str(folder), **options)
    except Exception as error:  # loaders fail in many ways on foreign bytes
        raise UserError(f"{folder} cannot be loaded as {model_class.__name__}: {error}") from error
    _check_tensors(folder, report)
    return model


def _check_tensors(folder: Path, report: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a model with missing or wrongly sized tensors, which would be random."""
    lines = []
    for kind in ("missing", "mismatched"):
        names = sorted(map(str, report.get(f"{kind}_keys", ())))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        if names:
            lines.append(f"{kind}: {', '.join(names[:_SHOWN])}{more}")
    if lines:
        unknown = sorted(map(str, report.get("unexpected_keys", ())))
        if unknown:
            lines.append(f"unknown: {', '.join(unknown[:_SHOWN])}, {len(unknown)} in all")
        raise UserError(
            f"{folder} does not hold the model that its config.json describes; its tensors are\n  "
            + "\n  ".join(lines)
        )


def _refuse_pointers(weights: Sequence[Path]) -> None:
    for path in weights:
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise UserError(f"{path} is a Git LFS pointer, not weights: run `git lfs pull`")


def _class_of(folder: Path, library: str, kind: str) -> type:
    """Return the class of a component, by its names in the pipeline's index."""
    own = library not in ("diffusers", "transformers")
    module = f"diffusers.pipelines.{library}" if own else library
    try:
        component = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{folder / INDEX} names {library}.{kind}, which the installed packages do not have "
            f"({error}): pipelines with code of their own are not run"
        ) from error
    return component


def _components(folder: Path) -> dict[str, tuple[str, str]]:
    """Return library and class of each component that a pipeline has."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
        pairs = {name: value for name, value in index.items() if isinstance(value, list)}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): give --weights the folder of a diffusers pipeline"
        ) from error
    return {name: (str(pair[0]), str(pair[1])) for name, pair in pairs.items() if all(pair)}


def _files(folder: Path, variant: str) -> Iterator[Path]:
    """Yield the files of a pipeline that are read, sorted within each component."""
    yield folder / INDEX
    for name in sorted(_components(folder)):
        used = set(_weights(folder / name, variant))
        for path in sorted((folder / name).glob("*")):
            if path.is_file() and (path in used or path.suffix not in (".safetensors", ".bin")):
                yield path


def _weights(folder: Path, variant: str) -> list[Path]:
    """Return the weight files of a component: its variant's, else the plain ones."""
    for ending in ("safetensors", "bin"):
        paths = sorted(folder.glob(f"*.{ending}"))
        own = [path for path in paths if variant and f".{variant}" in path.name]
        plain = [path for path in paths if _PLAIN_WEIGHTS.fullmatch(path.name)]
        if own or plain:
            return own or plain
    return []
