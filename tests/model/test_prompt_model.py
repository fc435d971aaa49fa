from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from img2prompt import presets
from img2prompt.artifact import Artifact
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import HeadConfig, PlanConfig, TrainConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import (
    WEIGHTS,
    PromptModel,
    build_prompt_model,
    learned_state,
    load_head,
    load_learned_state,
    load_prompt_model,
    read_learned_state,
)
from img2prompt.model.towers.build import DEMO_SHAPE, open_tower
from img2prompt.model.towers.clip import ClipTower

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
PLAN = PlanConfig(lora_rate=0.34, nfz_rate=0.34, lora_rank=4)


def predictor(
    plan: PlanConfig = PLAN, width: int = 8, seed: int = 0, tower_seed: int = 0
) -> PromptModel:
    tower = ClipTower.fresh(VISION, tower_seed)
    return build_prompt_model(tower, 32, plan, HeadConfig(width=width), seed)


def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def changed(model: PromptModel) -> PromptModel:
    """The same model with every learning tensor and statistic moved."""
    for name, tensor in learned_state(model).items():
        tensor += 0.1 if tensor.is_floating_point() else 3
        assert torch.equal(model.state_dict()[name], tensor)
    return model


@torch.no_grad()
def test_a_prompt_model_is_the_head_on_the_tower() -> None:
    model = predictor().eval()
    assert model.tower is not None
    assert model(pixels()).shape == (3, 384)
    assert torch.equal(model(pixels()), model.head(model.tower(pixels())))
    probe = build_prompt_model(None, 32, PlanConfig(), HeadConfig(), 0)
    features = torch.randn(5, 32)
    assert torch.equal(probe(features), probe.head(features))


@pytest.mark.parametrize("start", ["kaiming", "published"])
def test_the_seed_alone_decides_the_start(start: str) -> None:
    plan = PLAN.replace({"lora_init": start})
    torch.manual_seed(9)
    first = learned_state(predictor(plan, seed=3))
    after = torch.rand(1)
    torch.manual_seed(9)
    assert torch.equal(after, torch.rand(1))
    again, other = (learned_state(predictor(plan, seed=seed)) for seed in (3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = {name for name in first if not torch.equal(first[name], other[name])}
    assert {n for n in first if n.endswith(("lora_A.default.weight", "head.0.weight"))} <= drawn


def test_a_probe_and_a_fine_tune_of_a_seed_start_with_the_same_head() -> None:
    probe = build_prompt_model(None, 32, PlanConfig(), HeadConfig(width=8), 5)
    found, tuned = learned_state(probe), learned_state(predictor(seed=5))
    assert found.keys() == {name for name in tuned if name.startswith("head.")}
    assert all(torch.equal(found[name], tuned[name]) for name in found)


def test_the_learned_state_has_learning_tensors_and_statistics() -> None:
    model = predictor()
    names = set(learned_state(model))
    statistics = {f"head.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}
    assert statistics <= names
    learning = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert names == learning | statistics
    assert not any("encoder.layers.0." in name or "embeddings" in name for name in names)


@torch.no_grad()
def test_a_learned_state_makes_the_same_model_again(tmp_path: Path) -> None:
    trained = changed(predictor()).eval()
    safetensors.torch.save_file(learned_state(trained), tmp_path / "state")
    again = predictor(seed=1).eval()
    assert not torch.equal(again(pixels()), trained(pixels()))
    load_learned_state(again, safetensors.torch.load_file(tmp_path / "state"), "here")
    assert torch.equal(again(pixels()), trained(pixels()))
    state = again.state_dict()
    assert all(torch.equal(state[name], t) for name, t in trained.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_non_finite_learned_weight_is_refused(value: float) -> None:
    state = {name: tensor.clone() for name, tensor in learned_state(predictor()).items()}
    state["head.3.bias"][:2] = value
    with pytest.raises(
        UserError, match=r"^runs/x: 2 of 384 values of tensor head\.3\.bias are non"
    ):
        load_learned_state(predictor(), state, "runs/x")


def test_all_misfits_are_listed() -> None:
    state = dict(learned_state(predictor()))
    state.pop("head.3.bias")
    state["head.3.weight"] = state["head.3.weight"][:, :5]
    state["head.9.weight"] = torch.zeros(1)
    model = predictor()
    before = {name: tensor.clone() for name, tensor in learned_state(model).items()}
    with pytest.raises(UserError) as caught:
        load_learned_state(model, state, "runs/x")
    assert str(caught.value).splitlines() == [
        "runs/x does not fit this config:",
        "  head.3.weight is (384, 5), expected (384, 8)",
        "  missing head.3.bias",
        "  unexpected head.9.weight",
    ]
    assert all(torch.equal(learned_state(model)[name], tensor) for name, tensor in before.items())


def test_another_plan_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"unexpected tower.*lora_A"):
        load_learned_state(predictor(PlanConfig(nfz_rate=0.34)), learned_state(predictor()), "x")


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    ClipTower.fresh(VISION, 7).save(tmp_path / "tower", torch.float32)
    return str(tmp_path / "tower")


def run_of(folder: Path, config: TrainConfig, model: PromptModel, fingerprint: str) -> Artifact:
    draft = Draft.open(str(folder / "run"), "train", config, {"tower": fingerprint})
    draft.write_bytes(WEIGHTS, safetensors.torch.save(learned_state(model)))
    return draft.publish()


def trained(config: TrainConfig) -> tuple[PromptModel, str]:
    tower = open_tower(config.tower, config.seed)
    model = build_prompt_model(tower, tower.shape.width, config.plan, config.head, config.seed)
    return changed(model).eval(), tower.base_fingerprint


def config_of(tower: str, **changes: Any) -> TrainConfig:
    return TrainConfig(
        name="run", tower=TowerConfig(weights=tower), plan=PLAN, head=HeadConfig(width=8), **changes
    )


@torch.no_grad()
def test_a_finished_run_is_loaded_ready_to_predict(tmp_path: Path, checkpoint: str) -> None:
    config = config_of(checkpoint)
    model, fingerprint = trained(config)
    run = run_of(tmp_path, config, model, fingerprint)
    loaded = load_prompt_model(run)
    assert not loaded.training
    assert torch.equal(loaded(pixels()), model(pixels()))
    assert read_learned_state(run).keys() == learned_state(model).keys()


@torch.no_grad()
def test_a_finished_probe_is_loaded_with_its_tower(tmp_path: Path, checkpoint: str) -> None:
    config = config_of(checkpoint).replace({"plan": PlanConfig().to_dict()})
    probe = changed(build_prompt_model(None, 32, config.plan, config.head, 0)).eval()
    tower = open_tower(config.tower)
    loaded = load_prompt_model(run_of(tmp_path, config, probe, tower.base_fingerprint))
    assert torch.equal(loaded(pixels()), probe(tower(pixels())))


def test_only_the_head_of_a_run_is_loaded(tmp_path: Path, checkpoint: str) -> None:
    config = config_of(checkpoint)
    model, fingerprint = trained(config)
    run = run_of(tmp_path, config, model, fingerprint)
    tuned = predictor(PlanConfig(nfz_rate=1.0), seed=4)
    before = {name: tensor.clone() for name, tensor in learned_state(tuned).items()}
    load_head(tuned, run)
    for name, tensor in learned_state(tuned).items():
        head = name.startswith("head.")
        assert torch.equal(tensor, learned_state(model)[name] if head else before[name])
    with pytest.raises(UserError, match=r"run does not fit this config:\n(.*\n)*.*missing head"):
        load_head(predictor(width=0), run)


def test_another_base_tower_is_refused(tmp_path: Path, checkpoint: str) -> None:
    config = config_of(checkpoint)
    model, fingerprint = trained(config)
    run = run_of(tmp_path, config, model, fingerprint)
    other = ClipTower.fresh(VISION, 8)
    other.save(checkpoint, torch.float32)
    with pytest.raises(UserError) as caught:
        load_prompt_model(run)
    for part in (run.uri, checkpoint, fingerprint, other.base_fingerprint):
        assert part in str(caught.value)


@torch.no_grad()
def test_a_fresh_tower_is_drawn_again_from_the_runs_seed(tmp_path: Path) -> None:
    config = config_of("fresh", seed=3)
    model, fingerprint = trained(config)
    run = run_of(tmp_path, config, model, fingerprint)
    loaded = load_prompt_model(run)
    assert loaded.tower is not None
    shape = loaded.tower.shape
    assert (shape.width, shape.depth, shape.size) == (160, 7, 64)
    assert DEMO_SHAPE["hidden_size"] == 160
    assert all(
        torch.equal(tensor, model.state_dict()[name])
        for name, tensor in loaded.state_dict().items()
    )


def test_the_published_model_learns_165_8_of_356_0_million(monkeypatch) -> None:
    """Counted from the published description, and on the model itself without its weights."""
    d, f, w, rank, patch, tokens = 1024, 4096, 16384, 1024 // 4, 14, 577
    layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    lora = 14 * 4 * 2 * rank * d
    head = d * w + 2 * w + w * 384 + 384  # BatchNorm makes the first Linear's bias needless
    learned = 9 * layer + lora + 2 * d + head
    tower = 24 * layer + 3 * patch**2 * d + d + tokens * d + 2 * d + 2 * d
    assert (learned, tower + lora + head) == (165_830_016, 355_969_408)

    monkeypatch.setattr("img2prompt.model.towers.pretrained.fingerprint", lambda tensors: "")
    shape = {"image_size": 336, "patch_size": patch, "hidden_size": d, "intermediate_size": f}
    config = presets.lora_published()
    with torch.device("meta"):
        vision = CLIPVisionModel(
            CLIPVisionConfig(**shape, num_hidden_layers=24, num_attention_heads=16)
        )
        model = build_prompt_model(ClipTower(vision), d, config.plan, config.head, config.seed)
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
    sizes = [tensor.numel() for tensor in model.parameters()]
    assert sum(t.numel() for t in model.parameters() if t.requires_grad) == learned
    assert sum(sizes) == tower + lora + head
    assert learned / sum(sizes) == pytest.approx(0.466, abs=5e-4)
    with_bias = learned + w  # theirs
    assert round(learned / 1e6, 1) == round(with_bias / 1e6, 1) == 165.8
