"""The seam between a vision backbone and everything that trains, prices or exports it.

A backbone is a stack of transformer layers between its embeddings and its pooling. Other rooms use
these names only, and know no family.

Shapes: B pictures, S side of a picture in pixels, D width of a token and of a feature.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

Pooling = Literal["class token", "attention"]
RGB = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """Sizes of a tower, known from its `config.json` without its weights."""

    family: str
    depth: int
    """Number of transformer layers."""
    width: int
    """Length D of a token and of a feature."""
    mlp: int
    """Hidden units of a layer's MLP."""
    heads: int
    """Attention heads of a layer."""
    activation: str
    """Name of the MLP's activation, as transformers spells it."""
    size: int
    """Side S of a picture in pixels."""
    patch: int
    """Side of a patch in pixels."""
    class_token: bool
    """A learned token stands before those of the patches."""
    patch_bias: bool
    """The patch convolution has a bias."""
    input_norm: bool
    """A LayerNorm between the embeddings and the lowest layer."""
    pooling: Pooling
    """`class token`: the final norm of that token. `attention`: a learned query attends to the
    final norm of all tokens, and an MLP follows (arXiv 2106.04560, section 3.4)."""

    @property
    def patches(self) -> int:
        """Number of patches of a picture."""
        return (self.size // self.patch) ** 2

    @property
    def tokens(self) -> int:
        """Number of tokens of a picture in each layer."""
        return self.patches + self.class_token


class Tower(nn.Module, ABC):
    """A vision backbone from raw pixels to features."""

    mean: ClassVar[RGB]
    std: ClassVar[RGB]
    """Mean and deviation of red, green and blue in [0, 1], by which pixels are normalised."""
    shape: TowerShape
    base_fingerprint: str
    """Fingerprint of the weights it started from, whatever is trained or injected later."""

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """Transformer layers, bottom to top."""

    @property
    @abstractmethod
    def embeddings(self) -> Sequence[nn.Module]:
        """Modules below the lowest layer; they are trained only when asked for."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """LayerNorm above the top layer; it is trained with any learning layer."""

    @property
    def pooling_head(self) -> nn.Module | None:
        """Learned pooling above the final norm, if any; it is trained with the top layer."""
        return None

    @abstractmethod
    def lora_targets(self, layer: int) -> list[str]:
        """Names, below the tower, of the linear modules of a layer that LoRA adapts."""

    @abstractmethod
    def encode(self, normalised: Tensor) -> Tensor:
        """Features (B, D) of normalised pixels (B, 3, S, S)."""

    @abstractmethod
    def recompute_activations(self) -> None:
        """Keep only the inputs of layers for the backward pass, and run each layer again in it."""

    @abstractmethod
    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write a checkpoint that transformers' AutoModel and `open_tower` read.

        LoRA must be merged into the layers before.
        """

    @abstractmethod
    def save_processor(self, folder: str | Path, fit: Literal["crop", "whole"]) -> None:
        """Write how pictures become the tower's pixels, for transformers' AutoImageProcessor.

        `fit` as in ShardConfig.
        """

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (B, S, S, 3) as float32 (B, 3, S, S) in the tower's units."""
        mean = torch.tensor(self.mean, device=pixels.device)
        std = torch.tensor(self.std, device=pixels.device)
        return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 (B, D) of pixels uint8 (B, S, S, 3)."""
        return self.encode(self.normalise(pixels)).float()
