"""Tower and head together, and the tensors that training changed."""

import torch
from torch import Tensor, nn

from img2prompt.config import HeadConfig, PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.head import build_head
from img2prompt.model.plan import apply_plan
from img2prompt.model.tower import Tower


class Predictor(nn.Module):
    """Pixels uint8 (B, S, S, 3), or features (B, D) when there is no tower, to vectors (B, 384)."""

    def __init__(self, tower: Tower | None, head: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(x) if self.tower is not None else x)


def build_predictor(
    tower: Tower | None, width: int, plan: PlanConfig, head: HeadConfig, seed: int
) -> Predictor:
    """A predictor ready to learn: plan applied, LoRA and head drawn from `seed`.

    `width` is the feature width D.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh_head = build_head(width, head)
        if tower is not None:
            apply_plan(tower, plan)
    return Predictor(tower, fresh_head)


def learned_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changed: parameters that require gradients, and BatchNorm's statistics."""
    learning = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    head_buffers = {f"head.{name}" for name, _ in model.get_submodule("head").named_buffers()}
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name in learning | head_buffers
    }


def load_learned_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Put learned tensors back; a missing, extra or wrongly sized one is a UserError."""
    expected = learned_state(model)
    problems = [f"missing {name}" for name in expected.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise UserError(f"{where} does not fit this config:\n  " + "\n  ".join(sorted(problems)))
    model.load_state_dict(state, strict=False)


def head_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head's part of a learned state, with names as the head itself has them."""
    return {n.removeprefix("head."): t for n, t in state.items() if n.startswith("head.")}
