"""ConvNeXt V2 (arXiv 2301.00808): convolutional towers with LayerNorm.

A layer is a block; the downsampling below a stage belongs to the stage's first block. The feature
is the average over all pixels after the final norm.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import ConvNextV2Config

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import LoraTargets
from img2prompt.errors import UserError
from img2prompt.model.towers.convnext_shape import ConvNextShape
from img2prompt.model.towers.pretrained import PretrainedTower, side_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ConvNextTower(PretrainedTower):
    """A ConvNeXt V2 without its classifier."""

    family = "ConvNeXt V2"
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    config_class = ConvNextV2Config
    model_name = "ConvNextV2Model"
    other_tensors = ("classifier.",)
    prefixes = ("convnextv2.",)
    attention_kernel = "eager"  # it has no attention

    def __init__(self, vision: "PreTrainedModel") -> None:
        super().__init__(vision)
        # Each module already has its name below `vision`; the list is kept from being registered.
        self._layers = (_layers(vision),)
        self._recompute = False

    @classmethod
    def shape_of(cls, config: Any) -> ConvNextShape:
        stages = tuple(zip(config.depths, config.hidden_sizes, strict=True))
        return ConvNextShape(
            depth=sum(config.depths),
            width=config.hidden_sizes[-1],
            size=side_of(config.image_size),
            patch=side_of(config.patch_size),
            stages=stages,
            activation=config.hidden_act,
        )

    @classmethod
    def at_size(cls, stored: Any, config: TowerConfig) -> Any:
        if config.resize_positions:
            raise UserError(
                f"tower.resize_positions is on, and {config.weights} has no position embeddings: "
                "leave it off; tower.image_size alone is enough"
            )
        wanted = copy.deepcopy(stored)
        wanted.image_size = config.image_size or stored.image_size
        step = wanted.patch_size * 2 ** (len(wanted.depths) - 1)
        if wanted.image_size % step:
            raise UserError(
                f"tower.image_size is {wanted.image_size}; allowed for {config.weights}: a "
                f"multiple of {step}"
            )
        return wanted

    @property
    def shape(self) -> ConvNextShape:
        assert isinstance(self._shape, ConvNextShape)
        return self._shape

    @property
    def layers(self) -> nn.ModuleList:
        return self._layers[0]

    @property
    def embeddings(self) -> list[nn.Module]:
        return [self.vision.get_submodule("embeddings")]

    @property
    def final_norm(self) -> nn.Module:
        return self.vision.get_submodule("layernorm")

    def lora_targets(self, layer: int, targets: LoraTargets) -> list[str]:
        """Names of the linear layers of a block, which are 1 x 1 convolutions."""
        (*_, top) = self.layers[layer].children()
        (block,) = (name for name, module in self.named_modules() if module is top)
        return [f"{block}.{name}" for name in ("pwconv1", "pwconv2")]

    def encode(self, normalised: Tensor) -> Tensor:
        recompute = self._recompute and torch.is_grad_enabled()
        x = self.vision.get_submodule("embeddings")(normalised.to(self.vision.dtype))
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        return self.final_norm(x.mean((2, 3)))

    def recompute_activations(self) -> None:
        self._recompute = True


def _layers(vision: "PreTrainedModel") -> nn.ModuleList:
    layers: list[nn.Module] = []
    for stage in vision.get_submodule("encoder.stages").children():
        below = list(stage.get_submodule("downsampling_layer").children())
        for block in stage.get_submodule("layers").children():
            layers.append(nn.Sequential(*below, block))
            below = []
    return nn.ModuleList(layers)
