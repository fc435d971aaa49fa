"""The vision tower: pictures (B, S, S, 3) -> features (B, D).

The feature is CLIP's pooled class token after the last LayerNorm and before the projection into
the space it shares with text: the published heads start from these D = 1024 numbers of ViT-L/14.

Shapes: B pictures, S side in pixels, D width of the tower.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.initialization import no_init_weights
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from img2prompt.config.tower import TowerConfig
from img2prompt.model.towers.weights import fingerprint, load_tower_weights

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1] over CLIP's training pictures (arXiv 2103.00020)."""


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S) in CLIP's units, on the same device."""
    mean = torch.tensor(CLIP_MEAN, device=pixels.device)
    std = torch.tensor(CLIP_STD, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


class Tower(nn.Module):
    """A CLIP vision transformer that takes raw pixels.

    `vision` is transformers' model, so layers are `vision.encoder.layers[N]`.
    """

    def __init__(self, vision: CLIPVisionModel) -> None:
        super().__init__()
        self.vision = vision
        self.base_fingerprint = fingerprint(vision.state_dict())
        """Of the weights the tower started from, whatever is trained or injected later."""

    @property
    def size(self) -> int:
        """Side S of its pictures in pixels."""
        side = self.vision.config.image_size
        assert isinstance(side, int)
        return side

    @property
    def width(self) -> int:
        """Length D of a feature."""
        return self.vision.config.hidden_size

    @property
    def depth(self) -> int:
        """Number of transformer layers."""
        return self.vision.config.num_hidden_layers

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> features float32 (B, D)."""
        return self.vision(pixel_values=normalise(pixels)).pooler_output.float()


def load_tower(config: TowerConfig) -> Tower:
    """The tower that a config names, float32, on the CPU, in evaluation mode.

    Raises UserError when the weights are absent, incomplete or of another shape or resolution.
    """
    vision_config, tensors = load_tower_weights(config)
    with no_init_weights():
        vision = _build(vision_config)
    vision.load_state_dict(tensors)
    return Tower(vision).eval()


def fresh_tower(vision_config: Mapping[str, Any], seed: int) -> Tower:
    """An untrained tower; the fields are those of transformers' CLIPVisionConfig."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tower(_build(CLIPVisionConfig(**vision_config)))


def save_tower(tower: Tower, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a vision checkpoint that transformers and `load_tower` read.

    Adapters must be merged into the layers before.
    """
    config = copy.deepcopy(tower.vision.config)
    config.dtype, config.architectures = dtype, ["CLIPVisionModel"]
    config.save_pretrained(folder)
    tensors = {name: t.to(dtype).contiguous() for name, t in tower.vision.state_dict().items()}
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def save_processor(folder: str | Path, size: int, fit: Literal["crop", "whole"]) -> None:
    """Write how pictures become `size` pixels, for transformers' AutoImageProcessor.

    `fit` as in ShardConfig.
    """
    square = {"height": size, "width": size}
    crop = fit == "crop"
    CLIPImageProcessorPil(
        size={"shortest_edge": size} if crop else square,
        do_center_crop=crop,
        crop_size=square,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    ).save_pretrained(folder)


def _build(config: CLIPVisionConfig) -> CLIPVisionModel:
    return CLIPVisionModel._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
