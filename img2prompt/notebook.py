"""Predictions of a finished run for a few pictures, in this process and without Ray.

Pictures are decoded and resized as those of the run's shards, and the tower computes in the type
that it has in the jobs, so vectors are those that `jobs/predict.py` writes.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from img2prompt.data import images
from img2prompt.data.sources import files
from img2prompt.data.vectors import DIMENSIONS, require_finite
from img2prompt.errors import UserError
from img2prompt.predictors.base import Answers, Predictor, concatenate
from img2prompt.predictors.build import choose_predictor
from img2prompt.workspace import Workspace

Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A path or URI, a file's bytes, a Pillow picture, or pixels uint8 (H, W, 3)."""


class LoadedPredictor:
    """A predictor on this machine's GPU, or on its CPU where there is none."""

    def __init__(
        self, predictor: Predictor, device: torch.device, shard_config: dict[str, Any]
    ) -> None:
        self._predictor = predictor
        self._device = device
        self._size, self._fit = shard_config["size"], shard_config["fit"]

    def predict(self, pictures: Iterable[Picture], batch_size: int = 64) -> Answers:
        """Answer for each picture: its prompt vector, and text and confidence if predicted.

        Raises:
            UserError: a picture cannot be read, with its number; no list of pictures is given; or
                an answer is non-finite.
        """
        if isinstance(pictures, str | os.PathLike | bytes | Image.Image):
            raise UserError("give a list of pictures, such as predict([picture])")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; allowed: 1 or more")
        answers = [Answers(np.empty((0, DIMENSIONS), np.float32))]
        pixels = self._read(pictures)
        while batch := list(itertools.islice(pixels, batch_size)):
            with torch.inference_mode():
                inputs = torch.from_numpy(np.stack(batch)).to(self._device)
                answers.append(self._predictor.predict(inputs))
        joined = concatenate(answers[1:] or answers)
        numbers = [f"picture {number}" for number in range(len(joined.vectors))]
        require_finite(joined.vectors, numbers, "predict")
        return joined

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


def load_predictor(out: str, name: str) -> LoadedPredictor:
    """Load a predictor by its name in `--run`; `img2prompt.load` is the public name."""
    workspace = Workspace(out)
    spec, shards = choose_predictor(name, workspace), workspace.open_shards()
    spec.check(shards)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return LoadedPredictor(spec.load(device), device, dict(shards.config))
