"""The model of a run, tower and head together, and the tensors that its training changed."""

import json

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from img2prompt.artifact import Artifact
from img2prompt.config.train import HeadConfig, PlanConfig, TrainConfig
from img2prompt.errors import UserError
from img2prompt.model.git_lfs import refuse_pointer_bytes
from img2prompt.model.heads.regression import build_head
from img2prompt.model.pissa import START, rebase
from img2prompt.model.plan import apply_plan
from img2prompt.model.tensor_checks import require_finite_weights, shortened
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.build import open_tower, read_shape
from img2prompt.storage import read_bytes

WEIGHTS = "model.safetensors"
"""Name of the learned tensors in a run's folder."""


class PromptModel(nn.Module):
    """Maps pixels uint8 (B, S, S, 3), or features (B, D) without a tower, to vectors (B, 384)."""

    def __init__(self, tower: Tower | None, head: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tower(x) if self.tower is not None else x)


def build_prompt_model(
    tower: Tower | None, width: int, plan: PlanConfig, head: HeadConfig, seed: int
) -> PromptModel:
    """Build a model that is ready to learn: plan applied, LoRA and head drawn from `seed`.

    `width` is the feature width D. Without a tower the model maps features to vectors (a probe).
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh_head = build_head(width, head)
        if tower is not None:
            apply_plan(tower, plan)
    return PromptModel(tower, fresh_head)


def learned_state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies on the CPU of `learned_tensors`."""
    return {name: tensor.cpu().contiguous() for name, tensor in learned_tensors(model).items()}


def learned_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes: learning parameters and BatchNorm's statistics.

    With PiSSA, also those that decide the base of a matrix (`pissa.START`); they do not change.
    """
    names = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    names |= {f"head.{name}" for name, _ in model.get_submodule("head").named_buffers()}
    names |= {name for name, _ in model.named_buffers() if name.endswith(START)}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def load_learned_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load learned tensors, which came from `where`, into a model.

    Raises:
        UserError: a tensor is missing, extra, wrongly sized, or has non-finite values.
    """
    expected = learned_state(model)
    wrong = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing = [f"missing {name}" for name in expected.keys() - state.keys()]
    extra = [f"unexpected {name}" for name in state.keys() - expected.keys()]
    problems = [line for kind in (wrong, missing, extra) for line in shortened(sorted(kind))]
    if problems:
        raise UserError(f"{where} does not fit this config:\n  " + "\n  ".join(problems))
    require_finite_weights(state, where)
    rebase(model, state)
    model.load_state_dict(state, strict=False)


def read_learned_state(run: Artifact) -> dict[str, Tensor]:
    """Read the tensors that a run learned; a file that holds none is a UserError."""
    path = run.path(WEIGHTS)
    data = read_bytes(path)
    refuse_pointer_bytes(path, data)
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from error


def load_head(model: nn.Module, run: Artifact) -> None:
    """Give a model the head of a finished run; one of another shape is a UserError."""
    parts = (learned_state(model), "tower."), (read_learned_state(run), "head.")
    state = {n: t for tensors, part in parts for n, t in tensors.items() if n.startswith(part)}
    load_learned_state(model, state, run.uri)


def load_probe(run: Artifact) -> PromptModel:
    """Load a finished probe as a model from features to vectors, without its tower."""
    config = TrainConfig.from_json(json.dumps(run.config), where=run.uri)
    width = read_shape(config.tower).width
    model = build_prompt_model(None, width, config.plan, config.head, config.seed)
    load_learned_state(model, read_learned_state(run), run.uri)
    return model.eval()


def load_prompt_model(run: Artifact) -> PromptModel:
    """Load a finished run as a model from pixels to vectors, ready to predict.

    Raises:
        UserError: the base checkpoint is not the one that the run was trained on.
    """
    config = TrainConfig.from_json(json.dumps(run.config), where=run.uri)
    tower = open_tower(config.tower, config.seed)
    if tower.base_fingerprint != run.inputs["tower"]:
        raise UserError(
            f"{run.uri} was trained on a tower with fingerprint {run.inputs['tower']}, but "
            f"{config.tower.weights!r} has {tower.base_fingerprint}: give it its own tower"
        )
    model = build_prompt_model(tower, tower.shape.width, config.plan, config.head, config.seed)
    load_learned_state(model, read_learned_state(run), run.uri)
    return model.eval()
