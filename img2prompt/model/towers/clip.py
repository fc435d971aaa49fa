"""CLIP vision transformers (arXiv 2103.00020).

The feature is the pooled class token after the last LayerNorm and before the projection into the
space that CLIP shares with text: the published heads start from these D = 1024 numbers of ViT-L/14.
"""

from torch import nn
from transformers import CLIPVisionConfig

from img2prompt.model.towers.vit import VitTower


class ClipTower(VitTower):
    """A CLIP vision transformer."""

    family = "CLIP"
    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    config_class = CLIPVisionConfig
    model_name = "CLIPVisionModel"
    other_tensors = ("logit_scale", "text_projection.weight", "visual_projection.weight")
    patch_bias = False
    input_norm = True

    @property
    def embeddings(self) -> list[nn.Module]:
        return [*super().embeddings, self.vision.get_submodule("pre_layrnorm")]
