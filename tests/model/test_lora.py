"""The variants of LoRA; plain LoRA is tested with the plan."""

from collections.abc import Iterator

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from tiny import MemoryRows, config_of, run_loop
from torch import Tensor

from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.lora import merge_lora
from img2prompt.model.pissa import START
from img2prompt.model.plan import apply_plan
from img2prompt.model.prompt_model import (
    PromptModel,
    build_prompt_model,
    learned_state,
    load_learned_state,
)
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.clip import ClipTower
from img2prompt.model.towers.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteTower

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "initializer_factor": 8.0,
}
ATTENTION = {f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
MLP = {"mlp.fc1", "mlp.fc2"}
BASE = PlanConfig(lora_rate=0.5, nfz_rate=0.25, lora_rank=4, lora_scale=0.7)
VARIANTS = {
    "rsLoRA": {"lora_rslora": True},
    "MLP": {"lora_targets": "mlp"},
    "both": {"lora_targets": "both"},
    "DoRA": {"lora_dora": True, "lora_targets": "both"},
    "PiSSA": {"lora_init": "pissa", "lora_targets": "both"},
    "PiSSA, rsLoRA and DoRA": {"lora_init": "pissa", "lora_rslora": True, "lora_dora": True},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def plan(request: pytest.FixtureRequest) -> PlanConfig:
    return BASE.replace(request.param)


@pytest.fixture
def tower() -> Tower:
    return fresh()


def fresh() -> ClipTower:
    return ClipTower.fresh(VISION, seed=0).eval()


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=generator)


def adapted(tower: Tower) -> Iterator[tuple[str, LoraLinear]]:
    return ((n, part) for n, part in tower.named_modules() if isinstance(part, LoraLinear))


@torch.no_grad()
def move(tower: Tower) -> None:
    """Change what LoRA learns."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tower.named_parameters():
        if ".lora_" in name:
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)


@pytest.mark.parametrize(
    ("targets", "names"), [("attention", ATTENTION), ("mlp", MLP), ("both", ATTENTION | MLP)]
)
def test_lora_goes_on_the_targets(tower: Tower, targets: str, names: set[str]) -> None:
    apply_plan(tower, BASE.replace({"lora_targets": targets}))
    expected = {f"vision.encoder.layers.{layer}.{name}" for layer in (1, 2) for name in names}
    assert {name for name, _ in adapted(tower)} == expected


@torch.no_grad()
def test_every_variant_starts_with_the_towers_output(tower: Tower, plan: PlanConfig) -> None:
    before = tower(pixels())
    apply_plan(tower, plan)
    torch.testing.assert_close(tower(pixels()), before, atol=2e-5, rtol=0)
    move(tower)
    assert (tower(pixels()) - before).abs().max() > 1e-2


@torch.no_grad()
def test_every_variant_is_merged_exactly(tower: Tower, plan: PlanConfig) -> None:
    names = set(tower.vision.state_dict())
    apply_plan(tower, plan)
    move(tower)
    trained = tower(pixels())
    merge_lora(tower)
    assert set(tower.vision.state_dict()) == names
    torch.testing.assert_close(tower(pixels()), trained, atol=2e-5, rtol=0)


@torch.no_grad()
def test_rslora_divides_the_scale_by_the_root_of_the_rank(tower: Tower) -> None:
    apply_plan(tower, BASE.replace({"lora_rslora": True}))
    x = torch.randn(2, 32)
    for _, part in adapted(tower):
        part.lora_B["default"].weight.normal_()
        down, up = part.lora_A["default"].weight, part.lora_B["default"].weight
        expected = part.base_layer(x) + 0.7 / 4**0.5 * x @ down.T @ up.T
        torch.testing.assert_close(part(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_dora_learns_length_and_direction_apart(tower: Tower) -> None:
    """Equation 5 of arXiv 2402.09353, with the norm over each row of the matrix (out, in)."""
    apply_plan(tower, BASE.replace({"lora_dora": True}))
    lengths = {name: part.base_layer.weight.norm(dim=1) for name, part in adapted(tower)}
    move(tower)
    x = torch.randn(2, 32)
    for name, part in adapted(tower):
        magnitude = part.lora_magnitude_vector["default"].weight
        assert not torch.allclose(magnitude, lengths[name])
        update = part.lora_B["default"].weight @ part.lora_A["default"].weight
        direction = part.base_layer.weight + 0.7 * update
        matrix = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
        expected = x @ matrix.T + part.base_layer.bias
        torch.testing.assert_close(part(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pissa_starts_with_the_largest_singular_values(tower: Tower) -> None:
    plain = fresh()
    apply_plan(tower, BASE.replace({"lora_init": "pissa"}))
    for name, part in adapted(tower):
        whole = plain.get_submodule(name).weight
        values = torch.linalg.svdvals(whole)
        update = 0.7 * part.lora_B["default"].weight @ part.lora_A["default"].weight
        torch.testing.assert_close(torch.linalg.svdvals(update)[:4], values[:4])
        torch.testing.assert_close(torch.linalg.svdvals(part.base_layer.weight)[0], values[4])
        torch.testing.assert_close(part.base_layer.weight + update, whole, atol=1e-6, rtol=0)


def trained_model(plan: PlanConfig) -> PromptModel:
    model = build_prompt_model(fresh(), 32, plan, HeadConfig(), seed=0)
    assert model.tower is not None
    move(model.tower)
    return model.eval()


@torch.no_grad()
def test_a_loaded_state_is_the_same_function(plan: PlanConfig) -> None:
    model = trained_model(plan)
    other = build_prompt_model(fresh(), 32, plan, HeadConfig(), seed=1).eval()
    load_learned_state(other, learned_state(model), "here")
    assert torch.equal(other(pixels()), model(pixels()))


@torch.no_grad()
def test_pissa_of_another_machine_is_the_same_function() -> None:
    """Its singular vectors may have other signs, and mix where singular values are close."""
    model = trained_model(BASE.replace({"lora_init": "pissa"}))
    assert model.tower is not None
    outputs, state = model(pixels()), learned_state(model)
    generator = torch.Generator().manual_seed(2)
    for name, part in adapted(model.tower):  # another base, and the rest in LoRA
        start = [f"tower.{name}.{buffer}" for buffer in START]
        state[start[0]] = -state[start[0]] + 0.1 * torch.randn(4, 1, generator=generator)
        change = part.start_up @ part.start_down - state[start[1]] @ state[start[0]]
        part.base_layer.weight += 0.7 * change
    expected = model(pixels())
    assert (expected - outputs).abs().max() > 0.1
    other = build_prompt_model(fresh(), 32, BASE.replace({"lora_init": "pissa"}), HeadConfig(), 0)
    load_learned_state(other.eval(), state, "here")
    torch.testing.assert_close(other(pixels()), expected, atol=1e-4, rtol=0)
    assert all(torch.equal(learned_state(other)[name], tensor) for name, tensor in state.items())


def test_pissa_needs_matrices_that_are_large_enough() -> None:
    with pytest.raises(UserError, match=r"lora_rank is 33; allowed with .*pissa: at most 32"):
        apply_plan(fresh(), BASE.replace({"lora_init": "pissa", "lora_rank": 33}))
    convolutions = EfficientNetLiteTower.fresh(
        EfficientNetLiteConfig(width_coefficient=0.3, depth_coefficient=0.6, image_size=33), 0
    )
    with pytest.raises(UserError, match=r"'pissa', and LoRA of a EfficientNet-Lite tower"):
        apply_plan(convolutions, BASE.replace({"lora_init": "pissa"}))


@pytest.mark.parametrize("variant", ["DoRA", "PiSSA"])
def test_a_resumed_run_equals_an_undisturbed_one(variant: str, tiny_tower: str) -> None:
    plan = BASE.replace(VARIANTS[variant])
    config = config_of(tiny_tower, plan, optim__epochs=2)
    rows, val = MemoryRows(48, seed=0), MemoryRows(20, seed=1)
    whole = run_loop(config, rows, val)
    resumed = run_loop(config, rows, val, start=whole.saved[0])
    for name, tensor in whole.saved[-1].engine.model.items():
        assert torch.equal(resumed.saved[-1].engine.model[name], tensor), name
    assert whole.reported[-1]["train_loss"] < whole.reported[0]["train_loss"]
