import re
from collections.abc import Callable
from itertools import product

import pytest
import torch

from img2prompt.config.train import PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.lora import merge_lora
from img2prompt.model.plan import LayerPlan, apply_plan, layer_plan
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.clip import ClipTower

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
GRID = [round(number * 0.05, 2) for number in range(21)]


def span(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


@pytest.mark.parametrize(
    ("depth", "lora_rate", "nfz_rate", "frozen", "lora", "trained"),
    [
        (24, 0.6, 0.4, (0,), span(1, 14), span(15, 23)),  # the published one
        (24, 0.0, 0.0, span(0, 23), (), ()),
        (24, 1.0, 0.0, (), span(0, 23), ()),
        (24, 0.0, 1.0, (), (), span(0, 23)),
        (24, 0.5, 0.5, (), span(0, 11), span(12, 23)),
        (24, 0.0, 0.25, span(0, 17), (), span(18, 23)),
        (24, 0.3, 0.0, span(0, 16), span(17, 23), ()),
        (24, 0.04, 0.04, span(0, 23), (), ()),  # less than one layer each
        (24, 0.65, 0.4, (), span(0, 14), span(15, 23)),  # 15.6 and 9.6 layers fit into 24
        (12, 0.6, 0.4, (0,), span(1, 7), span(8, 11)),
        (7, 0.45, 0.45, (0,), span(1, 3), span(4, 6)),
        (100, 0.0, 0.57, span(0, 42), (), span(43, 99)),  # 100 * 0.57 = 56.99999999999999
        (1, 1.0, 0.0, (), (0,), ()),
    ],
)
def test_plans_are_as_published(
    depth: int,
    lora_rate: float,
    nfz_rate: float,
    frozen: tuple[int, ...],
    lora: tuple[int, ...],
    trained: tuple[int, ...],
) -> None:
    assert layer_plan(depth, lora_rate, nfz_rate) == LayerPlan(frozen, lora, trained)


@pytest.mark.parametrize(
    ("depth", "lora_rate", "nfz_rate"),
    [(24, 0.6, 0.5), (24, 1.0, 0.05), (24, -0.1, 0.5), (24, 0.5, -0.1), (2, 0.5, 1.0)],
)
def test_overlap_and_negative_rates_are_refused(
    depth: int, lora_rate: float, nfz_rate: float
) -> None:
    with pytest.raises(UserError) as caught:
        layer_plan(depth, lora_rate, nfz_rate)
    told = str(caught.value)
    assert f"lora_rate {lora_rate} and nfz_rate {nfz_rate}" in told
    assert f"allowed: both 0 or more, together at most the {depth} layers" in told


def test_the_grid_of_rates_has_243_plans() -> None:
    plans = set()
    for lora_rate, nfz_rate in product(GRID, GRID):
        try:
            plan = layer_plan(24, lora_rate, nfz_rate)
        except UserError:
            continue
        assert sorted(plan.frozen + plan.lora + plan.trained) == list(range(24))
        plans.add(plan)
    assert len(plans) == 243


def test_rates_that_mean_the_same_layers_are_one_plan() -> None:
    assert layer_plan(24, 0.6, 0.4) == layer_plan(24, 0.59, 0.39)
    assert len({layer_plan(24, 0.6, 0.4), layer_plan(24, 0.59, 0.39)}) == 1
    assert layer_plan(24, 0.6, 0.4) != layer_plan(24, 0.58, 0.33)


def test_a_plan_is_readable() -> None:
    assert str(layer_plan(24, 0.6, 0.4)) == "frozen 0-0 (1), LoRA 1-14 (14), trained 15-23 (9)"
    assert str(layer_plan(24, 0.0, 1.0)) == "frozen none, LoRA none, trained 0-23 (24)"


@pytest.fixture
def tower() -> Tower:
    return ClipTower.fresh(VISION, seed=0).eval()


def layer_of(name: str) -> int | None:
    found = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def is_lora(name: str) -> bool:
    return ".lora_" in name


def trained_from(first: int) -> Callable[[str], bool]:
    return lambda name: (layer_of(name) or 0) >= first or name.startswith("post_layernorm")


@pytest.mark.parametrize(
    ("config", "learns"),
    [
        (PlanConfig(), lambda name: False),
        (PlanConfig(nfz_rate=0.5), trained_from(2)),
        (PlanConfig(lora_rate=0.5, nfz_rate=0.25), lambda n: is_lora(n) or trained_from(3)(n)),
        (PlanConfig(lora_rate=1.0), lambda n: is_lora(n) or n.startswith("post_layernorm")),
        (PlanConfig(nfz_rate=1.0), lambda n: layer_of(n) is not None or n.startswith("post_")),
        (PlanConfig(nfz_rate=1.0, embeddings=True), lambda name: True),
        (
            PlanConfig(lora_rate=0.5, nfz_rate=0.25, embeddings=True),
            lambda n: is_lora(n) or trained_from(3)(n) or layer_of(n) is None,
        ),
    ],
)
def test_exactly_the_planned_tensors_learn(
    tower: Tower, config: PlanConfig, learns: Callable[[str], bool]
) -> None:
    plan = apply_plan(tower, config)
    assert plan == layer_plan(4, config.lora_rate, config.nfz_rate)
    tensors = dict(tower.vision.named_parameters())
    assert {n for n, t in tensors.items() if t.requires_grad} == set(filter(learns, tensors))
    with_lora = {(layer_of(name), name.split(".")[4]) for name in tensors if is_lora(name)}
    assert with_lora == set(product(plan.lora, ATTENTION))
    for name, tensor in tensors.items():
        if is_lora(name):
            assert tensor.shape == ((16, 32) if ".lora_A." in name else (32, 16))


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_the_output_is_unchanged_at_the_start(tower: Tower) -> None:
    before = tower(pixels())
    apply_plan(tower, PlanConfig(lora_rate=0.75, nfz_rate=0.25))
    assert torch.equal(tower(pixels()), before)
    assert before.std(dim=0).max() > 0


@torch.no_grad()
def test_the_update_is_scale_times_b_times_a(tower: Tower) -> None:
    reference = ClipTower.fresh(VISION, seed=0).eval()
    apply_plan(tower, PlanConfig(lora_rate=0.5, nfz_rate=0.0, lora_rank=3, lora_scale=0.7))
    tensors = dict(tower.vision.named_parameters())
    for number, name in product((2, 3), ATTENTION):
        place = f"encoder.layers.{number}.self_attn.{name}"
        down = tensors[f"{place}.lora_A.default.weight"]
        up = tensors[f"{place}.lora_B.default.weight"]
        assert down.std() > 0
        assert not up.any()
        torch.nn.init.normal_(up, std=0.3)
        reference.vision.get_parameter(f"{place}.weight").add_(0.7 * up @ down)
    torch.testing.assert_close(tower(pixels()), reference(pixels()), atol=2e-6, rtol=0)
    assert (tower(pixels()) - ClipTower.fresh(VISION, seed=0)(pixels())).abs().max() > 1e-3


def lora_matrices(config: PlanConfig, kind: str) -> torch.Tensor:
    """All numbers of the down- (`A`) or up-matrices (`B`) of a fresh tower."""
    torch.manual_seed(0)
    wide = ClipTower.fresh({**VISION, "hidden_size": 256}, seed=0)
    apply_plan(wide, config)
    found = [t for name, t in wide.named_parameters() if f".lora_{kind}." in name]
    return torch.cat([t.detach().flatten() for t in found])


def test_the_published_start_is_normal_with_deviation_one_by_rank() -> None:
    config = PlanConfig(lora_rate=1.0, lora_rank=64, lora_init="published")
    down = lora_matrices(config, "A")
    assert len(down) == 4 * 4 * 256 * 64
    assert down.std().item() == pytest.approx(1 / 64, rel=0.01)
    assert down.mean().item() == pytest.approx(0, abs=1e-4)
    kurtosis = (down**4).mean() / (down**2).mean() ** 2
    assert kurtosis.item() == pytest.approx(3, abs=0.1)  # a uniform one has 1.8
    assert not lora_matrices(config, "B").any()


def test_the_default_start_is_kaiming_uniform() -> None:
    config = PlanConfig(lora_rate=1.0, lora_rank=64)
    down = lora_matrices(config, "A")
    bound = 256**-0.5
    assert down.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert down.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not lora_matrices(config, "B").any()


@torch.no_grad()
def test_dropout_changes_only_the_update_and_only_in_training(tower: Tower) -> None:
    apply_plan(tower, PlanConfig(lora_rate=0.5, lora_dropout=0.5))
    assert not any(part.training for part in tower.modules())  # as before
    start = tower(pixels())
    torch.manual_seed(3)
    assert torch.equal(tower.train()(pixels()), start)  # the update is still zero
    for name, tensor in tower.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(tensor, std=0.3)
    assert not torch.equal(tower(pixels()), tower(pixels()))
    assert torch.equal(tower.eval()(pixels()), tower(pixels()))


@pytest.mark.parametrize("nfz_rate", [0.0, 0.25])
@torch.no_grad()
def test_merged_matrices_give_the_same_outputs(tower: Tower, nfz_rate: float) -> None:
    plain = ClipTower.fresh(VISION, seed=0).eval()
    names, before = set(plain.vision.state_dict()), plain(pixels())
    config = PlanConfig(lora_rate=0.5, nfz_rate=nfz_rate, lora_scale=0.7, lora_dropout=0.1)
    apply_plan(tower, config)
    for name, tensor in tower.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(tensor, std=0.3)
    trained = tower(pixels())
    merge_lora(tower)
    assert set(tower.vision.state_dict()) == names
    torch.testing.assert_close(tower(pixels()), trained, atol=1e-5, rtol=0)
    assert (trained - before).abs().max() > 1e-2
    plain.vision.load_state_dict(tower.vision.state_dict())
    assert torch.equal(plain(pixels()), tower(pixels()))


@torch.no_grad()
def test_a_tower_without_lora_is_merged_already(tower: Tower) -> None:
    apply_plan(tower, PlanConfig(nfz_rate=0.5))
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    merge_lora(tower)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())


def test_a_step_moves_what_learns_and_nothing_else(tower: Tower) -> None:
    apply_plan(tower, PlanConfig(lora_rate=0.5, nfz_rate=0.25))
    before = {name: tensor.clone() for name, tensor in tower.named_parameters()}
    optimizer = torch.optim.SGD((t for t in tower.parameters() if t.requires_grad), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    (tower(pixels()) * torch.randn(3, 32, generator=generator)).sum().backward()
    optimizer.step()
    moved = {n for n, t in tower.named_parameters() if not torch.equal(t, before[n])}
    ups = {name for name in before if ".lora_B." in name}
    assert len(ups) == 8
    assert ups <= moved
    assert all(before[name].requires_grad or name not in moved for name in before)
    # While an up-matrix is zero, its down-matrix has no gradient; keys' biases never have one.
    assert not {name for name in moved if ".lora_A." in name}
    learning = {name for name, tensor in tower.named_parameters() if tensor.requires_grad}
    still = {n for n in learning - moved if ".lora_A." not in n}
    assert all(name.endswith("k_proj.bias") for name in still)
