"""Read the tensors of a checkpoint: one file or several, safetensors or pickles of tensors.

Checkpoints come from strangers, so pickles run no code, and an index names no file outside its
folder. Names that wrappers of torch leave behind are undone where they are unambiguous.
"""

import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from img2prompt.errors import UserError
from img2prompt.model.git_lfs import refuse_pointer
from img2prompt.model.towers.json_files import read_json

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""In order of preference; each may also be split, with a `.index.json` beside it."""

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that torch.compile, FSDP and activation checkpointing insert anywhere."""

OUTER = ("module.", "model.")
"""Prefixes of all tensors that DDP and training loops leave: DDP's wrapper, a model's attribute."""


def read_weights(source: Path, skipped: Callable[[str], bool]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint folder or file, by their names without wrappers.

    Tensors whose name without wrappers is `skipped` are left out, and in safetensors not read.

    Raises:
        UserError: there are no weights, or a file cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for path in [source] if source.is_file() else _weight_files(source):
        refuse_pointer(path)
        read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
        tensors |= read(path, lambda name: skipped(_bare(name)))
    return _without_wrappers(tensors)


def _weight_files(folder: Path) -> list[Path]:
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            return _indexed_files(index)
    hint = ""
    if any(folder.glob("open_clip_*")):
        hint = "; its open_clip_* files have OpenCLIP's tensor names, which are not read here"
    raise UserError(f"{folder} holds no weights; allowed: {', '.join(WEIGHT_FILES)}{hint}")


def _indexed_files(index: Path) -> list[Path]:
    """Return the files that an index names.

    The hub's cache links files to a folder outside, so links are followed; names may not lead out.
    """
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index} names no files: it needs a `weight_map`")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{index} names {name!r}; allowed: files in its own folder. Do not trust this "
                "checkpoint"
            )
    return [index.parent / name for name in names]


def _read_safetensors(path: Path, skipped: Callable[[str], bool]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not skipped(name)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from error


def _read_pickle(path: Path, skipped: Callable[[str], bool]) -> dict[str, Tensor]:
    """Read a pickle of tensors by name; nothing else in it is loaded or run."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} cannot be read as weights: {_refusal(error)}") from error
    except Exception as error:  # torch fails in many ways on foreign bytes
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path} cannot be read as weights: {type(error).__name__}: {first}"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(
            f"{path} cannot be read as weights: it holds other things than tensors by name"
        )
    return {name: tensor for name, tensor in tensors.items() if not skipped(name)}


def _refusal(error: pickle.UnpicklingError) -> str:
    """Say what a refused pickle holds; torch's own text advises to load it unsafely."""
    name = re.search(r"GLOBAL (\S+)", str(error))
    if name is None:
        return "it is no pickle of tensors by name"
    return (
        f"it is a pickle that refers to {name[1]}, and loading it could run code. Nothing was run. "
        "Give the checkpoint as model.safetensors from a source that you trust"
    )


def _bare(name: str) -> str:
    """Return a tensor's name without any wrapper that might be in it."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and f"{parts[0]}." in OUTER:
        parts = parts[1:]
    return ".".join(parts)


def _without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to their names without wrappers, if that is unambiguous.

    An outer prefix goes when all names have it, and no rename may make two names equal.
    """
    names = {
        name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors
    }
    while outer := _shared_prefix(names.values()):
        names = {name: bare.removeprefix(outer) for name, bare in names.items()}
    if len(set(names.values())) < len(names):
        return dict(tensors)
    return {names[name]: tensor for name, tensor in tensors.items()}


def _shared_prefix(names: Iterable[str]) -> str:
    """Return the outer prefix that all names have, empty if there is none."""
    names = list(names)
    shared = (outer for outer in OUTER if names and all(name.startswith(outer) for name in names))
    return next(shared, "")
