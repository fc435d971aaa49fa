"""Predictions of a finished run for a few pictures, in this process and without Ray.

Pictures are decoded and resized as those of the run's shards, and the tower computes in the type
that it has in the jobs, so vectors are those that `jobs/predict.py` writes.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from img2prompt.data import images
from img2prompt.data.sources import files
from img2prompt.data.vectors import DIMENSIONS
from img2prompt.errors import UserError
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import PromptModel, load_prompt_model
from img2prompt.workspace import Workspace

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A path or URI, a file's bytes, a Pillow picture, or pixels uint8 (H, W, 3)."""


@dataclass(frozen=True)
class Answers:
    """Answers for N pictures, in their order."""

    vectors: np.ndarray
    """Prompt vectors, float32 (N, 384)."""
    texts: list[str] | None = None
    confidences: np.ndarray | None = None


class LoadedRun:
    """A finished run on this machine's GPU, or on its CPU where there is none."""

    def __init__(self, model: PromptModel, shard_config: dict[str, Any]) -> None:
        self._size, self._fit = shard_config["size"], shard_config["fit"]
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        assert model.tower is not None
        model.tower.to(compute_dtype("auto", self._device))

    def predict(self, pictures: Iterable[Picture], batch_size: int = 64) -> Answers:
        """Predict a prompt vector for each picture.

        Raises:
            UserError: a picture cannot be read, with its number, or no list of pictures is given.
        """
        if isinstance(pictures, str | os.PathLike | bytes | Image.Image):
            raise UserError("give a list of pictures, such as predict([picture])")
        vectors = [np.empty((0, DIMENSIONS), np.float32)]
        pixels = self._read(pictures)
        while batch := list(itertools.islice(pixels, batch_size)):
            with torch.inference_mode():
                predicted = self._model(torch.from_numpy(np.stack(batch)).to(self._device))
            vectors.append(predicted.float().cpu().numpy())
        return Answers(np.concatenate(vectors))

    def _read(self, pictures: Iterable[Picture]) -> Iterator[np.ndarray]:
        """Pixels uint8 (S, S, 3) of each picture."""
        for number, picture in enumerate(pictures):
            try:
                yield images.resize(_pixels(picture), self._size, self._fit)
            except (images.BadPicture, OSError, ValueError) as error:
                name = f" ({picture})" if isinstance(picture, str | os.PathLike) else ""
                raise UserError(f"picture {number}{name} cannot be read: {error}") from error


def _pixels(picture: Picture) -> np.ndarray:
    """Pixels uint8 (H, W, 3) of a picture at its own size."""
    match picture:
        case Image.Image():
            return images.from_pillow(picture)
        case np.ndarray(dtype=np.uint8, shape=(height, width, 3)) if height and width:
            return picture
        case np.ndarray():
            raise images.BadPicture(
                f"array is {picture.dtype} {picture.shape}; allowed: uint8 (H, W, 3)"
            )
        case bytes():
            return images.decode(picture)
        case str() if "://" in picture:
            return images.decode(files.read_bytes(picture))
        case str() | os.PathLike():
            return images.decode(Path(picture).read_bytes())
    raise images.BadPicture(
        f"it is a {type(picture).__name__}; allowed: a path, bytes, a Pillow picture, or an array"
    )


def load_run(out: str, name: str) -> LoadedRun:
    """Load a finished run; `img2prompt.load` is its public name."""
    workspace = Workspace(out)
    run, shards = workspace.open_run(name), workspace.open_shards()
    run.require_input("shards", shards)
    return LoadedRun(load_prompt_model(run), dict(shards.config))
