from contextlib import nullcontext

import pytest
import torch
from counting import FLOP, kept_by_autograd
from peft.tuners.lora import Linear as LoraLinear
from torch.utils.flop_counter import FlopCounterMode

from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.cost import Cost
from img2prompt.model.precision import shorten_frozen
from img2prompt.model.prompt_model import PromptModel, build_prompt_model
from img2prompt.model.run_cost import cost
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.clip import ClipTower
from img2prompt.model.towers.siglip import SiglipTower
from img2prompt.model.towers.vit_shape import VitShape

VISION = {
    "hidden_size": 48,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "image_size": 48,
    "patch_size": 8,
}
L14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
PLANS = {
    "probe": PlanConfig(),
    "rates below one layer": PlanConfig(nfz_rate=0.1),
    "top trained": PlanConfig(nfz_rate=0.4),
    "published layout": PlanConfig(lora_rate=0.4, nfz_rate=0.4, lora_rank=8),
    "all LoRA": PlanConfig(lora_rate=1.0, lora_rank=3),
    "all trained": PlanConfig(nfz_rate=1.0),
    "embeddings, then frozen layers": PlanConfig(nfz_rate=0.4, embeddings=True),
    "embeddings and LoRA": PlanConfig(lora_rate=1.0, embeddings=True),
    "LoRA on the MLP": PlanConfig(lora_rate=0.6, lora_rank=8, lora_targets="mlp"),
    "LoRA on both": PlanConfig(lora_rate=0.4, nfz_rate=0.4, lora_rank=8, lora_targets="both"),
    "DoRA": PlanConfig(lora_rate=0.6, lora_rank=8, lora_dora=True),
    "PiSSA": PlanConfig(lora_rate=0.6, lora_rank=8, lora_init="pissa", lora_rslora=True),
}
HEADS = {"linear": HeadConfig(), "wide": HeadConfig(width=96)}
ROWS = 3


@pytest.fixture(params=[ClipTower, SiglipTower], ids=["CLIP", "SigLIP"])
def family(request: pytest.FixtureRequest) -> type[ClipTower] | type[SiglipTower]:
    return request.param


@pytest.fixture
def tower(family: type[ClipTower] | type[SiglipTower]) -> Tower:
    return family.fresh(VISION, seed=0)


def model_on(tower: Tower, plan: PlanConfig, head: HeadConfig) -> PromptModel:
    return build_prompt_model(tower, tower.shape.width, plan, head, seed=0)


def clip_shape(**fields: int) -> VitShape:
    return ClipTower.shape_of(ClipTower.config_class(**fields))


def estimate(plan: PlanConfig, head: HeadConfig, *, half: bool = False) -> Cost:
    return cost(clip_shape(**VISION), plan, head, half=half)


def dora_sizes(model: PromptModel) -> list[tuple[int, int, int]]:
    """Rank, inputs and outputs of matrices with DoRA."""
    if not any(".lora_magnitude" in name for name, _ in model.named_parameters()):
        return []
    layers = [part for part in model.modules() if isinstance(part, LoraLinear)]
    return [(*part.lora_A["default"].weight.shape, part.out_features) for part in layers]


def norm_flop(model: PromptModel) -> int:
    """FLOP of a pass that DoRA's norms take, whatever the number of rows."""
    return sum(2 * rank * i * (i + o) for rank, i, o in dora_sizes(model))


def norm_bytes(model: PromptModel, half: bool) -> int:
    """Bytes that DoRA's norms keep for a moment: their input, and its product with one matrix."""
    return sum((2 if half else 4) * i * (i + rank) for rank, i, _ in dora_sizes(model))


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (ROWS, 48, 48, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_flop_equal_those_that_torch_counts(
    tower: Tower, plan: PlanConfig, head: HeadConfig
) -> None:
    expected = cost(tower.shape, plan, head, half=False)
    model = model_on(tower, plan, head)
    with FlopCounterMode(display=False, custom_mapping=FLOP) as counter:
        outputs = model(pixels())
        forward = counter.get_total_flops()
        outputs.sum().backward()
    assert forward - norm_flop(model) == ROWS * expected.forward
    assert counter.get_total_flops() - forward == ROWS * expected.backward


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_parameters_equal_those_of_the_model(
    tower: Tower, plan: PlanConfig, head: HeadConfig
) -> None:
    expected = cost(tower.shape, plan, head, half=False)
    tensors = list(model_on(tower, plan, head).parameters())
    assert expected.parameters == sum(t.numel() for t in tensors)
    assert expected.learned == sum(t.numel() for t in tensors if t.requires_grad)
    assert expected.gradients == sum(t.nbytes for t in tensors if t.requires_grad)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("plan", [p for p in PLANS.values() if not p.frozen_tower])
def test_activations_agree_with_what_autograd_keeps(
    tower: Tower, plan: PlanConfig, half: bool
) -> None:
    head = HEADS["wide"]
    model, expected = model_on(tower, plan, head), cost(tower.shape, plan, head, half=half)
    if half:
        shorten_frozen(model, torch.bfloat16)
    precision = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    with precision, kept_by_autograd(model) as kept:
        model(pixels())
    found = sum(kept.values())
    # Left out: statistics of the normalisations, 16-bit copies of the embeddings.
    found -= norm_bytes(model, half)
    assert found == pytest.approx(ROWS * expected.activations + expected.copies, rel=0.03, abs=1024)


@pytest.mark.parametrize("plan", PLANS.values())
def test_frozen_matrices_are_kept_in_16_bits(tower: Tower, plan: PlanConfig) -> None:
    model = model_on(tower, plan, HEADS["linear"])
    expected = cost(tower.shape, plan, HEADS["linear"], half=True)
    shorten_frozen(model, torch.bfloat16)
    short = [tensor for tensor in model.parameters() if tensor.dtype == torch.bfloat16]
    assert sum(tensor.numel() for tensor in short) == expected.shortened
    assert not any(tensor.requires_grad for tensor in short)
    nbytes = sum(tensor.nbytes for tensor in model.parameters())
    assert expected.weights == nbytes + expected.copies


@pytest.mark.parametrize(
    ("lora", "trained", "expected"),
    [
        (0, 0, 381.9),
        (0, 3, 476),
        (0, 6, 573),
        (9, 3, 641),
        (12, 4, 729),
        (24, 0, 820),
        (0, 24, 1157),
    ],
)
def test_the_published_tower_has_its_known_cost(lora: int, trained: int, expected: float) -> None:
    """Within 1 %: the figures leave out what the LayerNorm of the lowest trained layer asks for."""
    plan = PlanConfig(lora_rate=lora / 24, nfz_rate=trained / 24)
    tower = cost(clip_shape(**L14), plan, HeadConfig(), half=True)
    assert tower.forward == pytest.approx(381.9e9 + lora * 0.1513e9, rel=1e-3)
    assert tower.forward + tower.backward == pytest.approx(expected * 1e9, rel=0.008)


def test_the_published_tower_at_224_pixels() -> None:
    small = cost(clip_shape(**L14 | {"image_size": 224}), PlanConfig(), HeadConfig(), half=True)
    assert small.forward == pytest.approx(162.0e9, rel=1e-3)


def test_a_probe_on_cached_features_has_no_cost_of_the_tower() -> None:
    shape = clip_shape(**L14)
    probe = cost(shape, PlanConfig(), HeadConfig(), half=False, cached=True)
    assert probe.parameters == probe.learned == 1024 * 384 + 384
    assert (probe.forward, probe.backward) == (2 * 1024 * 384, 2 * 1024 * 384)
    whole = cost(shape, PlanConfig(), HeadConfig(), half=False)
    assert whole.learned == probe.learned
    assert whole.activations == probe.activations
    assert whole.forward > 100_000 * probe.forward


def test_memory_adds_up() -> None:
    found = estimate(PLANS["published layout"], HEADS["wide"], half=True)
    assert found.memory(7) == {
        "weights": 4 * found.parameters - 2 * found.shortened + found.copies,
        "gradients": 4 * found.learned,
        "optimiser": 8 * found.learned,
        "activations of 7 rows": 7 * found.activations,
    }
    assert found.activations < estimate(PLANS["published layout"], HEADS["wide"]).activations
    both = found.memory(7, averages=1, pulled=True)
    copies = {"averaged weights": 8 * found.learned, "pretrained weights": 4 * found.learned}
    assert both == found.memory(7) | copies


@pytest.mark.parametrize(("stage", "shared"), list(enumerate([set(), {2}, {1, 2}, {0, 1, 2}])))
def test_each_zero_stage_divides_more(stage: int, shared: set[int]) -> None:
    found = estimate(PLANS["published layout"], HEADS["wide"])
    alone, among = found.memory(7).values(), found.memory(7, 4, stage).values()
    pairs = enumerate(zip(alone, among, strict=True))
    assert {n for n, (whole, part) in pairs if whole // 4 == part < whole} == shared
    assert sum(whole == part for whole, part in zip(alone, among, strict=True)) == 4 - len(shared)


def test_the_description_is_one_line() -> None:
    plan = PlanConfig(lora_rate=0.6, nfz_rate=0.4, lora_rank=256)
    line = cost(clip_shape(**L14), plan, HeadConfig(width=16384), half=True).describe(32)
    assert "165.83M of 355.97M parameters learn (46.6%)" in line
    assert "GFLOP a row: 415.8 forward, 1022 with backward" in line
    assert "about 22.7 GB a worker (weights 1.38, gradients 0.663, optimiser 1.33, " in line
    assert "activations of 32 rows 19.3)" in line


def test_rates_that_overlap_are_refused() -> None:
    with pytest.raises(UserError, match="overlap"):
        estimate(PlanConfig(lora_rate=0.6, nfz_rate=0.6), HeadConfig())
