"""The seam between a vision backbone and everything that trains, prices or exports it.

A backbone is a stack of layers between its embeddings and its pooling. Other rooms use these names
only, and know no family.

Shapes: B pictures, S side of a picture in pixels, D width of a feature.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import LoraTargets, PlanConfig
from img2prompt.model.cost import Cost

if TYPE_CHECKING:
    from transformers.image_processing_backends import PilBackend

RGB = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class TowerShape(ABC):
    """Sizes of a tower, known without its weights; a family adds its own."""

    depth: int
    """Number of layers."""
    width: int
    """Length D of a feature."""
    size: int
    """Side S of a picture in pixels."""

    @abstractmethod
    def cost(self, plan: PlanConfig, *, half: bool) -> Cost:
        """Predict the cost of the tower, without a head, when it learns as `plan` says.

        `half`: matrix products in 16 bits by autocast.
        """


class Tower(nn.Module, ABC):
    """A vision backbone from raw pixels to features."""

    family: ClassVar[str]
    """Name of the family in messages."""
    mean: RGB
    std: RGB
    """Mean and deviation of red, green and blue in [0, 1], by which pixels are normalised."""
    base_fingerprint: str
    """Fingerprint of the weights it started from, whatever is trained or injected later."""

    @property
    @abstractmethod
    def shape(self) -> TowerShape:
        """Sizes of the tower."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: TowerConfig) -> Self:
        """Load a checkpoint: float32, on the CPU, in evaluation mode.

        Raises:
            UserError: as `read_shape`; or when weights are absent or unreadable, or when tensors
                are missing, unknown or wrongly sized (all of them are listed).
        """

    @classmethod
    @abstractmethod
    def read_shape(cls, folder: Path, config: TowerConfig) -> TowerShape:
        """Read the sizes of the tower in a checkpoint folder, from its `config.json` alone.

        Raises:
            UserError: `config.json` is unreadable or describes no tower of this family, or the
                tower does not work at the resolution that `config` asks for.
        """

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """Layers, bottom to top."""

    @property
    @abstractmethod
    def embeddings(self) -> Sequence[nn.Module]:
        """Modules below the lowest layer; they are trained only when asked for."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """Normalisation above the top layer; it is trained with any learning layer."""

    @property
    def pooling_head(self) -> nn.Module | None:
        """Other weights above the top layer, if any; they are trained with that layer."""
        return None

    @abstractmethod
    def lora_targets(self, layer: int, targets: LoraTargets) -> list[str]:
        """Names, below the tower, of the modules of a layer that LoRA adapts.

        They are linear layers or convolutions. `targets` as in PlanConfig.
        """

    @abstractmethod
    def encode(self, normalised: Tensor) -> Tensor:
        """Features (B, D) of normalised pixels (B, 3, S, S)."""

    @abstractmethod
    def recompute_activations(self) -> None:
        """Keep only the inputs of layers for the backward pass, and run each layer again in it."""

    @abstractmethod
    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write a checkpoint that `open_tower` reads, and transformers' AutoModel if it can.

        LoRA must be merged into the layers before.
        """

    @classmethod
    def processor_class(cls) -> "type[PilBackend]":
        """Return the class of transformers that makes the same pixels."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        return CLIPImageProcessorPil

    def save_processor(self, folder: str | Path, fit: Literal["crop", "whole"]) -> None:
        """Write how pictures become the tower's pixels, for transformers' AutoImageProcessor.

        `fit` as in ShardConfig.
        """
        size, crop = self.shape.size, fit == "crop"
        square = {"height": size, "width": size}
        self.processor_class()(
            size={"shortest_edge": size} if crop else square,
            do_center_crop=crop,
            crop_size=square,
            image_mean=self.mean,
            image_std=self.std,
        ).save_pretrained(folder)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (B, S, S, 3) as float32 (B, 3, S, S) in the tower's units."""
        mean = torch.tensor(self.mean, device=pixels.device)
        std = torch.tensor(self.std, device=pixels.device)
        return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 (B, D) of pixels uint8 (B, S, S, 3)."""
        return self.encode(self.normalise(pixels)).float()
