"""L2-SP: a pull of the trained layers toward the pretrained weights.

Source: Li et al., arXiv 1802.01483, where weight decay toward the starting point keeps more of what
a tower knows than weight decay toward zero. The 11th place of Kaggle's "Stable Diffusion - Image to
Prompts" decayed toward its pretrained weights too.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from img2prompt.model.prompt_model import learned_tensors

LORA = "lora_"
"""Part of the names of peft's matrices, which begin at no update and have no pretrained values."""


def pretrained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the learning tensors of the tower, by name, as they are now; none of LoRA.

    Call it before training changes the model.
    """
    return {
        name: tensor.clone()
        for name, tensor in learned_tensors(model).items()
        if name.startswith("tower.") and LORA not in name
    }


class PretrainedPull:
    """Half the squared distance of a tower's learning tensors from their pretrained values."""

    def __init__(self, pretrained: Mapping[str, Tensor]) -> None:
        """`pretrained`: values by name, as `pretrained_tensors` returns them."""
        self._pretrained = dict(pretrained)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the half squared distance, summed over all numbers, with its gradient."""
        total = torch.zeros((), device=next(model.parameters()).device)
        for name, tensor in model.named_parameters():
            if name in self._pretrained:
                start = self._pretrained[name] = self._pretrained[name].to(tensor.device)
                total = total + (tensor - start).square().sum() / 2
        return total
