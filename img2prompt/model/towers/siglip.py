"""SigLIP vision transformers (arXiv 2303.15343), and SigLIP 2 at a fixed resolution.

There is no class token: a head of attention with one learned query pools all tokens, and its
output is the feature.
"""

from pathlib import Path

from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from img2prompt.errors import UserError
from img2prompt.model.towers.vit import VisionConfig, VitTower
from img2prompt.model.towers.weights import CONFIG


class SiglipTower(VitTower):
    """A SigLIP vision transformer with its pooling head."""

    family = "SigLIP"
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    model_types = ("siglip", "siglip_vision_model")
    config_class = SiglipVisionConfig
    model_class = SiglipVisionModel
    processor_class = SiglipImageProcessorPil
    other_tensors = ("logit_scale", "logit_bias")
    class_token = False
    patch_bias = True
    input_norm = False
    pooling = "attention"

    @classmethod
    def read_config(cls, folder: Path) -> VisionConfig:
        config = super().read_config(folder)
        if not getattr(config, "vision_use_head", True):
            raise UserError(
                f"{folder / CONFIG} has vision_use_head false; allowed: true, as the pooling head "
                "makes the feature"
            )
        return config

    @property
    def embeddings(self) -> list[nn.Module]:
        return [self.vision.embeddings]

    @property
    def pooling_head(self) -> nn.Module:
        return self.vision.get_submodule("head")
