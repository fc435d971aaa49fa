import math

import pytest
import torch
from torch import nn

from img2prompt.config.train import HeadConfig, OptimConfig, PlanConfig
from img2prompt.model.prompt_model import PromptModel, build_prompt_model
from img2prompt.model.towers.clip import ClipTower
from img2prompt.train.optim import build_optimizer, build_schedule, parameter_groups, rate_factor

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
OPTIM = OptimConfig(lr=1e-4, head_lr=3e-3, weight_decay=0.02)


def predictor(plan: PlanConfig, width: int = 8) -> PromptModel:
    return build_prompt_model(ClipTower.fresh(VISION, 0), 16, plan, HeadConfig(width=width), seed=0)


@pytest.mark.parametrize(
    ("plan", "groups"),
    [
        (PlanConfig(), 2),
        (PlanConfig(lora_rate=0.34, nfz_rate=0.34), 4),
        (PlanConfig(nfz_rate=1.0, embeddings=True), 4),
    ],
)
def test_groups_hold_every_learning_tensor_once(plan: PlanConfig, groups: int) -> None:
    model = predictor(plan)
    found = parameter_groups(model, OPTIM)
    assert len(found) == groups
    numbers = [id(tensor) for group in found for tensor in group["params"]]
    learning = [id(tensor) for tensor in model.parameters() if tensor.requires_grad]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) == set(learning)


def test_rates_and_decay_go_by_name_and_shape() -> None:
    model = predictor(PlanConfig(lora_rate=0.34, nfz_rate=0.34))
    found = {
        id(tensor): (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, OPTIM)
        for tensor in group["params"]
    }
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            vector = name.endswith(".bias") or "norm" in name or name == "head.1.weight"
            assert found[id(tensor)] == (
                3e-3 if name.startswith("head.") else 1e-4,
                0.0 if vector else 0.02,
            )


@pytest.mark.parametrize("embeddings", [False, True])
def test_each_layer_learns_slower_than_the_one_above(embeddings: bool) -> None:
    """Peak rates of three layers by their names, at a decay of 0.5."""
    plan = PlanConfig(lora_rate=0.34, nfz_rate=0.34)
    plan = PlanConfig(nfz_rate=1.0, embeddings=True) if embeddings else plan
    model, config = predictor(plan), OptimConfig(lr=1e-4, head_lr=3e-3, layer_decay=0.5)
    groups = parameter_groups(model, config)
    found = {id(tensor): group["lr"] for group in groups for tensor in group["params"]}
    rates: dict[str, set[float]] = {}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            layer = name.split("layers.")[1][0] if "layers." in name else name.split(".")[-2]
            kind = "head" if name.startswith("head.") else layer
            rates.setdefault(kind, set()).add(found[id(tensor)])
    assert rates.pop("head") == {3e-3}
    assert rates.pop("post_layernorm") == {1e-4}
    assert (rates.pop("2"), rates.pop("1")) == ({1e-4}, {0.5e-4})
    assert rates.pop("0", None) == ({0.25e-4} if embeddings else None)
    assert set().union(*rates.values()) == ({0.125e-4} if embeddings else set())
    learning = [tensor for tensor in model.parameters() if tensor.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(found) == len(learning)


def test_without_layer_decay_groups_are_those_of_tower_and_head() -> None:
    model = predictor(PlanConfig(nfz_rate=1.0))
    assert [(g["lr"], g["weight_decay"]) for g in parameter_groups(model, OPTIM)] == [
        (1e-4, 0.0),
        (1e-4, 0.02),
        (3e-3, 0.0),
        (3e-3, 0.02),
    ]


def test_a_step_is_adamw_as_published() -> None:
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, with both moments corrected."""
    model = nn.Sequential()
    model.add_module("head", nn.Linear(3, 2))
    head = model.get_submodule("head")
    start = head.weight.detach().double().clone()
    optimizer = build_optimizer(model, OPTIM)
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    first = second = torch.zeros(2, 3, dtype=torch.float64)
    expected = start
    for step in (1, 2, 3):
        optimizer.zero_grad()
        (model(inputs) ** 2).sum().backward()
        gradient = head.weight.grad.double()
        first = 0.9 * first + 0.1 * gradient
        second = 0.98 * second + 0.02 * gradient**2
        update = (first / (1 - 0.9**step)) / ((second / (1 - 0.98**step)).sqrt() + 1e-8)
        expected = expected - 3e-3 * (update + 0.02 * expected)
        optimizer.step()
        torch.testing.assert_close(head.weight.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("step", "steps", "warmup", "factor"),
    [
        (0, 100, 0.1, 0.1),
        (4, 100, 0.1, 0.5),
        (9, 100, 0.1, 1.0),
        (10, 100, 0.1, 1.0),
        (40, 100, 0.1, 0.75),  # a third of the way down: (1 + cos 60 deg) / 2
        (55, 100, 0.1, 0.5),
        (70, 100, 0.1, 0.25),
        (99, 100, 0.1, 0.5 * (1 + math.cos(math.pi * 89 / 90))),
        (100, 100, 0.1, 0.0),
        (500, 100, 0.1, 0.0),
        (0, 100, 0.0, 1.0),
        (50, 100, 0.0, 0.5),
        (0, 3, 0.1, 1.0),  # the rise is one step at least
        (0, 1, 0.0, 1.0),
        (0, 1, 0.5, 1.0),
        (0, 3, 0.99, 1 / 3),
        (2, 3, 0.99, 1.0),
        (6, 100, 0.07, 1.0),  # 100 * 0.07 = 7.000000000000001 steps of rise
        (53, 100, 0.07, 0.5 * (1 + math.cos(math.pi * 46 / 93))),
    ],
)
def test_the_schedule_to_the_digit(step: int, steps: int, warmup: float, factor: float) -> None:
    assert rate_factor(step, steps, warmup) == pytest.approx(factor, abs=1e-15)


def test_the_schedule_rises_then_falls_and_never_stops_learning() -> None:
    factors = [rate_factor(step, 57, 0.2) for step in range(57)]
    top = math.ceil(57 * 0.2) - 1
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert max(factors) == factors[top] == 1
    assert min(factors) > 0


def test_every_group_follows_the_schedule() -> None:
    optimizer = build_optimizer(predictor(PlanConfig(nfz_rate=0.34)), OPTIM)
    schedule = build_schedule(optimizer, OPTIM, steps=20)
    for step in range(20):
        factor = rate_factor(step, 20, OPTIM.warmup)
        assert {group["lr"] for group in optimizer.param_groups} == {1e-4 * factor, 3e-3 * factor}
        optimizer.step()
        schedule.step()
