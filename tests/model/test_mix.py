from dataclasses import replace

import pytest
import torch
from torch import Tensor

from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.lora import merge_lora
from img2prompt.model.mix import Weights, check_mixable, interpolate, mean_of
from img2prompt.model.prompt_model import PromptModel, build_prompt_model, learned_state
from img2prompt.model.prompt_model import load_learned_state as load
from img2prompt.model.towers.clip import ClipTower

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
PLAN = PlanConfig(lora_rate=0.34, nfz_rate=0.34, lora_rank=2, lora_scale=0.5)
PLANS = (PLAN, replace(PLAN, lora_rank=3, lora_rslora=True), replace(PLAN, lora_scale=2.0))


def model_of(plan: PlanConfig, width: int = 8) -> PromptModel:
    tower = ClipTower.fresh(VISION, 0)
    return build_prompt_model(tower, 16, plan, HeadConfig(width=width), seed=0)


def weights_of(plan: PlanConfig, seed: int) -> Weights:
    """Learned tensors that are all moved from their start."""
    generator = torch.Generator().manual_seed(seed)
    state = learned_state(model_of(plan))
    moved = {
        name: t + 0.1 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for name, t in state.items()
    }
    return Weights(moved, plan)


def merged(weights: Weights) -> dict[str, Tensor]:
    """Tensors of the whole model with LoRA merged into its matrices."""
    model = model_of(weights.plan)
    load(model, dict(weights.state), "weights")
    assert model.tower is not None
    merge_lora(model.tower)
    return model.state_dict()


def test_a_mean_is_that_of_the_merged_matrices() -> None:
    members = [weights_of(plan, seed) for seed, plan in enumerate(PLANS)]
    matrices = [merged(member) for member in members]
    mean = mean_of(members)
    assert mean.plan.lora_rank == 2 + 3 + 2
    found = merged(mean)
    for name, tensor in found.items():
        if tensor.is_floating_point():
            expected = torch.stack([m[name] for m in matrices]).mean(0)
            torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)
    changed = [n for n in found if not torch.allclose(found[n].float(), matrices[0][n].float())]
    assert any("q_proj.weight" in name for name in changed)


def test_the_mean_of_one_is_itself() -> None:
    member = weights_of(PLAN, 0)
    assert mean_of([member]) is member


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_an_interpolation_is_that_of_the_merged_matrices(alpha: float) -> None:
    tuned, model = weights_of(PLAN, 1), model_of(PLAN)
    base = learned_state(model)
    ends = merged(Weights(base, PLAN)), merged(tuned)
    found = merged(interpolate(base, tuned, alpha))
    for name, tensor in found.items():
        if tensor.is_floating_point():
            expected = (1 - alpha) * ends[0][name] + alpha * ends[1][name]
            torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("change", [{"lora_dora": True}, {"lora_init": "pissa"}])
def test_variants_whose_update_is_no_product_are_refused(change: dict) -> None:
    plan = replace(PLAN, **change)
    with pytest.raises(UserError, match="a has plan"):
        check_mixable("a", Weights(learned_state(model_of(plan)), plan))
    check_mixable("a", weights_of(PLAN, 0))
    without = replace(plan, lora_rate=0.0)
    check_mixable("a", Weights(learned_state(model_of(without)), without))
