"""SigLIP vision transformers (arXiv 2303.15343), and SigLIP 2 (2502.14786) at a fixed resolution.

There is no class token: a head of attention with one learned query pools all tokens, and its
output is the feature.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import SiglipVisionConfig

from img2prompt.errors import UserError
from img2prompt.model.towers.vit import VitTower

if TYPE_CHECKING:
    from transformers.image_processing_backends import PilBackend


class SiglipTower(VitTower):
    """A SigLIP vision transformer with its pooling head."""

    family = "SigLIP"
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    config_class = SiglipVisionConfig
    model_name = "SiglipVisionModel"
    other_tensors = ("logit_scale", "logit_bias")
    class_token = False
    pooling = "attention"

    @classmethod
    def check_config(cls, path: Path, config: Any) -> None:
        super().check_config(path, config)
        if not getattr(config, "vision_use_head", True):
            raise UserError(
                f"{path} has vision_use_head false; allowed: true, as the pooling head makes the "
                "feature"
            )

    @classmethod
    def processor_class(cls) -> "type[PilBackend]":
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        return SiglipImageProcessorPil

    @property
    def pooling_head(self) -> nn.Module:
        return self.vision.get_submodule("head")
