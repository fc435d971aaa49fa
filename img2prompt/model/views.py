"""Views of a picture: what a model may be shown of it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda pixels: pixels,
    "flip": lambda pixels: pixels.flip(2),
}
"""From pixels (B, S, S, 3) to pixels of the same shape. `flip` swaps left and right."""


class ViewVectors:
    """A module that is run on several views of each picture.

    Calls return the column `vector`, (B, V * D) float32: all numbers of one view before the next.
    """

    def __init__(self, module: nn.Module, views: Sequence[str]) -> None:
        self._module = module
        self._views = [VIEWS[view] for view in views]

    def __call__(self, pixels: Tensor) -> dict[str, np.ndarray]:
        vectors = [self._module(view(pixels)).float().cpu() for view in self._views]
        return {"vector": torch.cat(vectors, dim=1).numpy()}
