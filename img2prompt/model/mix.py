"""Means and interpolations of the weights of finished runs.

A mean of weights is one model, as fast as each of its members. Greedy soups are those of Wortsman
et al. (arXiv 2203.05482), and WiSE-FT that of Wortsman et al. (arXiv 2109.01903). Both are of the
matrices that a model multiplies with. The mean of LoRA updates is therefore exact: `k` products
`up @ down` of rank r, side by side, are one of rank k * r.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from img2prompt.config.train import PlanConfig
from img2prompt.errors import UserError

DOWN, UP = "lora_A.", "lora_B."
"""Parts of the names that peft gives to LoRA matrices down (rank, D) and up (D, rank)."""


@dataclass(frozen=True)
class Weights:
    """Learned tensors of a run, by name, and the plan that they belong to."""

    state: Mapping[str, Tensor]
    plan: PlanConfig

    @property
    def lora_factor(self) -> float:
        """Factor on the product of the LoRA matrices."""
        rank = math.sqrt(self.plan.lora_rank) if self.plan.lora_rslora else 1
        return self.plan.lora_scale / rank


def check_mixable(name: str, weights: Weights) -> None:
    """Raise a UserError for a variant of LoRA whose update is no product of two matrices."""
    has_lora = any(DOWN in tensor for tensor in weights.state)
    if has_lora and (weights.plan.lora_dora or weights.plan.lora_init == "pissa"):
        raise UserError(
            f"{name} has plan.lora_dora {weights.plan.lora_dora} and plan.lora_init "
            f"{weights.plan.lora_init!r}; allowed in averages: false, and kaiming or published"
        )


def mean_of(members: Sequence[Weights]) -> Weights:
    """Return the mean of the members' weights; one member is returned as it is.

    They have the same layers; the ranks and scales of LoRA may differ. Statistics of BatchNorm are
    averaged like weights, its counter is the first member's.
    """
    if len(members) == 1:
        return members[0]
    state = {name: _mean(name, members) for name in members[0].state}
    if not any(DOWN in name for name in state):
        return Weights(state, members[0].plan)
    rank = sum(member.plan.lora_rank for member in members)
    plan = replace(members[0].plan, lora_rank=rank, lora_scale=1.0, lora_rslora=False)
    return Weights(state, plan)


def _mean(name: str, members: Sequence[Weights]) -> Tensor:
    tensors = [member.state[name] for member in members]
    if DOWN in name:
        return torch.cat(tensors)
    if UP in name:
        factors = [member.lora_factor / len(members) for member in members]
        return torch.cat([f * t for f, t in zip(factors, tensors, strict=True)], dim=1)
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)


def interpolate(base: Mapping[str, Tensor], tuned: Weights, alpha: float) -> Weights:
    """Return `(1 - alpha) * base + alpha * tuned`, of a run's weights at its start and its end.

    LoRA has no update in the base, so its down-matrices stay and its up-matrices shrink.
    """
    return Weights(
        {n: _between(n, base[n], tensor, alpha) for n, tensor in tuned.state.items()}, tuned.plan
    )


def _between(name: str, base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    if DOWN in name or not tuned.is_floating_point():
        return tuned
    if UP in name:
        return alpha * tuned
    return ((1 - alpha) * base.double() + alpha * tuned.double()).to(tuned.dtype)
