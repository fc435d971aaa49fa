"""What every family around a model of transformers must do; CLIP and SigLIP have tests beside."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from counting import FLOP, kept_by_autograd
from families import FAMILIES, ROWS, Family, edited, pixels, randomise
from safetensors.torch import load_file, save_file
from tiny import CPU, MemoryRows, config_of, model_of, run_loop
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.inference import prepare_for_inference
from img2prompt.model.lora import merge_lora
from img2prompt.model.plan import apply_plan
from img2prompt.model.precision import shorten_frozen
from img2prompt.model.prompt_model import PromptModel, build_prompt_model
from img2prompt.model.run_cost import cost
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.build import open_tower, read_shape
from img2prompt.train.engines.build import build_engine

PLANS = {
    "top trained": PlanConfig(nfz_rate=0.3),
    "LoRA": PlanConfig(lora_rate=0.6, lora_rank=3),
    "LoRA on both, top trained": PlanConfig(
        lora_rate=0.5, nfz_rate=0.25, lora_rank=4, lora_targets="both"
    ),
    "LoRA on the MLP": PlanConfig(lora_rate=1.0, lora_rank=2, lora_targets="mlp"),
    "all trained": PlanConfig(nfz_rate=1.0, embeddings=True),
}
BOTH = PLANS["LoRA on both, top trained"]


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def reference(family: Family) -> PreTrainedModel:
    model = family.model()
    randomise(model)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint as transformers writes it: with published names, and what is above the tower."""
    folder = tmp_path_factory.mktemp("checkpoint")
    reference.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tower(checkpoint: str) -> Tower:
    return open_tower(TowerConfig(weights=checkpoint))


def learning_model(tower: Tower, plan: PlanConfig) -> PromptModel:
    return build_prompt_model(tower, tower.shape.width, plan, HeadConfig(), seed=0)


def move_lora(tower: Tower) -> None:
    for name, tensor in tower.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(tensor, std=0.1)


@torch.no_grad()
def test_features_equal_those_of_transformers(
    family: Family, reference: PreTrainedModel, tower: Tower, checkpoint: str
) -> None:
    assert type(tower) is family.tower
    features = tower(pixels())
    assert features.shape == (ROWS, tower.shape.width)
    assert features.std(dim=0).mean() > 0.01
    expected = family.feature(reference, tower.normalise(pixels()))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert read_shape(TowerConfig(weights=checkpoint)) == tower.shape
    again = open_tower(TowerConfig(weights=checkpoint))
    assert again.base_fingerprint == tower.base_fingerprint


@torch.no_grad()
def test_another_resolution_is_that_of_transformers(
    family: Family, reference: PreTrainedModel, checkpoint: str
) -> None:
    larger = TowerConfig(weights=checkpoint, image_size=48, resize_positions=family.positions)
    tower = open_tower(larger)
    assert tower.shape == read_shape(larger)
    assert tower.shape.size == 48
    expected = family.feature(reference, tower.normalise(pixels(48)))
    torch.testing.assert_close(tower(pixels(48)), expected, atol=1e-5, rtol=1e-5)
    other = TowerConfig(weights=checkpoint, image_size=48, resize_positions=not family.positions)
    with pytest.raises(UserError, match=r"add --tower.resize-positions|resize_positions is on"):
        read_shape(other)
    with pytest.raises(UserError, match=r"image_size is 49; allowed.* multiple of"):
        read_shape(TowerConfig(weights=checkpoint, image_size=49))


@torch.no_grad()
def test_nothing_is_random_in_training(tower: Tower) -> None:
    expected = tower(pixels())
    assert torch.equal(tower.train()(pixels()), expected)


def test_tensors_that_do_not_fit_are_listed(tower: Tower, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tower.save(tmp_path, torch.float32)
    tensors = load_file(path)
    gone, short = sorted(name for name, tensor in tensors.items() if tensor.numel() > 20)[:2]
    del tensors[gone]
    tensors[short] = tensors[short].flatten()[:7].clone()
    save_file(tensors | {"odd": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        open_tower(TowerConfig(weights=str(tmp_path)))
    message = str(caught.value)
    assert gone in message.partition("missing: ")[2].partition("\n")[0]
    assert "unknown: odd (2,)" in message
    assert f"{short} is (7,), its config.json needs" in message.partition("wrong size: ")[2]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_size", [32, 64], "allowed: one number"),
        ("patch_size", [8, 4], "allowed: one number"),
        ("hidden_act", 3, "is not a valid"),
    ],
)
def test_an_impossible_config_is_refused(
    name: str, value: object, message: str, checkpoint: str, tmp_path: Path
) -> None:
    fields = json.loads(Path(checkpoint, "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(edited(fields, name, value)))
    with pytest.raises(UserError, match=message):
        read_shape(TowerConfig(weights=str(tmp_path)))


def test_exactly_the_planned_tensors_learn(family: Family, tower: Tower) -> None:
    before = tower(pixels())
    apply_plan(tower, BOTH)
    torch.testing.assert_close(tower(pixels()), before, atol=1e-6, rtol=0)
    learning = {name for name, tensor in tower.named_parameters() if tensor.requires_grad}
    assert any(family.middle in name and ".lora_A." in name for name in learning)
    assert not any(family.middle in name and ".lora_" not in name for name in learning)
    top = dict(tower.layers[3].named_parameters())
    assert all(tensor.requires_grad for tensor in top.values())
    assert all(tensor.requires_grad for tensor in tower.final_norm.parameters())
    assert not any("embeddings." in name for name in learning)
    head = tower.pooling_head
    assert head is None or all(tensor.requires_grad for tensor in head.parameters())
    tower(pixels()).sum().backward()
    without = {n for n, t in tower.named_parameters() if t.requires_grad and t.grad is None}
    assert not without


def test_everything_learns_when_asked(tower: Tower) -> None:
    apply_plan(tower, PLANS["all trained"])
    (tower(pixels()) * torch.randn(tower.shape.width)).sum().backward()
    assert not {name for name, tensor in tower.named_parameters() if tensor.grad is None}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_flop_and_parameters_equal_those_of_torch(tower: Tower, plan: PlanConfig) -> None:
    expected = cost(tower.shape, plan, HeadConfig(), half=False)
    model = learning_model(tower, plan)
    with FlopCounterMode(display=False, custom_mapping=FLOP) as counter:
        outputs = model(pixels())
        forward = counter.get_total_flops()
        outputs.sum().backward()
    assert forward == ROWS * expected.forward
    assert counter.get_total_flops() - forward == ROWS * expected.backward
    tensors = list(model.parameters())
    assert expected.parameters == sum(t.numel() for t in tensors)
    assert expected.learned == sum(t.numel() for t in tensors if t.requires_grad)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_activations_agree_with_what_autograd_keeps(
    tower: Tower, plan: PlanConfig, half: bool
) -> None:
    model = learning_model(tower, plan)
    expected = cost(tower.shape, plan, HeadConfig(), half=half)
    if half:
        shorten_frozen(model, torch.bfloat16)
        short = [tensor for tensor in model.parameters() if tensor.dtype == torch.bfloat16]
        assert sum(tensor.numel() for tensor in short) == expected.shortened
    precision = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    with precision, kept_by_autograd(model) as kept:
        model(pixels())
    predicted = ROWS * expected.activations + expected.copies
    assert sum(kept.values()) == pytest.approx(predicted, rel=0.03, abs=1024)


@torch.no_grad()
def test_a_merged_tower_is_exported(family: Family, tower: Tower, tmp_path: Path) -> None:
    names = set(tower.state_dict())
    apply_plan(tower, BOTH)
    move_lora(tower)
    trained = tower(pixels())
    merge_lora(tower)
    assert set(tower.state_dict()) == names
    torch.testing.assert_close(tower(pixels()), trained, atol=1e-4, rtol=1e-4)
    tower.save(tmp_path, torch.float32)
    tower.save_processor(tmp_path, "crop")
    ours = open_tower(TowerConfig(weights=str(tmp_path)))
    assert torch.equal(ours(pixels()), tower(pixels()))
    if family.exported:
        theirs, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values())
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        pictures = processor(list(pixels().numpy()), return_tensors="pt")
        expected = theirs(**pictures).pooler_output
        torch.testing.assert_close(tower(pixels()), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_features_in_16_bits_are_close(tower: Tower) -> None:
    expected = tower(pixels())
    short = prepare_for_inference(tower, tower, CPU, "bf16")
    assert torch.cosine_similarity(short(pixels()), expected).min() > 0.98


def gradients(checkpoint: str, recompute: bool) -> tuple[dict[str, Tensor], int]:
    """Gradients by name, and how often a layer ran."""
    config = config_of(checkpoint, BOTH, engine__recompute=recompute)
    model = model_of(config).train()
    assert model.tower is not None
    runs: list[int] = []
    for layer in model.tower.layers:
        norm = next(part for part in layer.modules() if isinstance(part, nn.LayerNorm))
        norm.register_forward_pre_hook(lambda *_: runs.append(1))
    engine = build_engine(model, config, 9, CPU)
    engine.backward(engine.forward(pixels()).square().mean())
    return {n: t.grad for n, t in model.named_parameters() if t.grad is not None}, len(runs)


def test_recomputing_gives_the_same_gradients(checkpoint: str) -> None:
    expected, once = gradients(checkpoint, recompute=False)
    ours, often = gradients(checkpoint, recompute=True)
    assert often > once
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4)


def test_a_fine_tune_learns_and_resumes(checkpoint: str) -> None:
    config = config_of(checkpoint, BOTH, optim__epochs=3, optim__lr=1e-3)
    rows, val = MemoryRows(48, seed=0), MemoryRows(20, seed=1)
    trained = run_loop(config, rows, val)
    assert trained.reported[-1]["train_loss"] < trained.reported[0]["train_loss"]
    resumed = run_loop(config, rows, val, start=trained.saved[1])
    for name, tensor in trained.saved[-1].engine.model.items():
        assert torch.equal(resumed.saved[-1].engine.model[name], tensor), name
