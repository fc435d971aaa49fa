"""Models of timm, tiny ones; only what a missing timm means is tested without it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import FLOP
from safetensors.torch import save_file
from tiny import MemoryRows, config_of, run_loop
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.errors import UserError
from img2prompt.model.lora import merge_lora
from img2prompt.model.plan import apply_plan
from img2prompt.model.prompt_model import build_prompt_model
from img2prompt.model.run_cost import cost
from img2prompt.model.towers.build import open_tower, read_shape
from img2prompt.model.towers.timm_models import TimmTower

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", VIT),
    "PE-Core": ("vit_pe_core_tiny_patch16_384", VIT | {"ref_feat_shape": [4, 4]}),
    "EVA-02": ("eva02_tiny_patch14_224", VIT | {"ref_feat_shape": [4, 4]}),
    "ConvNeXt": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
    "MobileCLIP": ("fastvit_mci0", {"layers": [1, 1, 1, 1], "embed_dims": [16, 32, 64, 128]}),
}
PLAN = PlanConfig(lora_rate=0.5, nfz_rate=0.25, lora_rank=2, lora_targets="both")
ROWS = 2


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (ROWS, 32, 32, 3), dtype=torch.uint8, generator=generator)


def write(folder: Path, model: nn.Module, name: str, arguments: dict[str, Any]) -> None:
    """Write a checkpoint as timm does for the hub, with a classifier."""
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    fields = {
        "architecture": name,
        "num_classes": 7,
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": mean, "std": std},
    }
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    name, arguments = request.param
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **arguments)
    for tensor in model.parameters():
        tensor.data += 0.1 * torch.randn(tensor.shape)
    write(tmp_path, model, name, arguments)
    return model.eval()


@pytest.fixture
def tower(reference: nn.Module, tmp_path: Path) -> TimmTower:
    tower = open_tower(TowerConfig(weights=str(tmp_path)))
    assert isinstance(tower, TimmTower)
    return tower


@torch.no_grad()
def test_features_are_what_timm_gives_to_its_classifier(
    reference: nn.Module, tower: TimmTower, tmp_path: Path
) -> None:
    normalised = (pixels().permute(0, 3, 1, 2) / 255 - torch.tensor(tower.mean)[:, None, None]) / (
        torch.tensor(tower.std)[:, None, None]
    )
    assert tower.mean == (0.5, 0.4, 0.3)
    expected = reference.forward_head(reference.forward_features(normalised), pre_logits=True)
    features = tower(pixels())
    assert features.shape == (ROWS, tower.shape.width)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(tower.train()(pixels()), features)
    assert read_shape(TowerConfig(weights=str(tmp_path))) == tower.shape
    assert tower.shape.depth == 4
    with pytest.raises(UserError, match="a model of timm for 32 pixels; allowed: 0 and off"):
        read_shape(TowerConfig(weights=str(tmp_path), image_size=64))


def test_exactly_the_planned_tensors_learn(tower: TimmTower) -> None:
    before = tower(pixels())
    apply_plan(tower, PLAN)
    torch.testing.assert_close(tower(pixels()), before, atol=1e-5, rtol=0)
    top = list(tower.layers[3].parameters())
    assert all(tensor.requires_grad for tensor in top)
    assert not any(tensor.requires_grad for tensor in tower.layers[0].parameters())
    for layer in (1, 2):
        learning = {n for n, t in tower.layers[layer].named_parameters() if t.requires_grad}
        assert learning
        assert all(".lora_" in name for name in learning)
    for _ in range(2):
        tower(pixels()).square().sum().backward()
        with torch.no_grad():
            for name, tensor in tower.named_parameters():
                if ".lora_B." in name:
                    tensor += 0.1
    for name, tensor in tower.named_parameters():
        assert tensor.grad is not None or not tensor.requires_grad, name
        if ".lora_" in name:
            assert tensor.grad.abs().max() > 0, name


@torch.no_grad()
def test_a_merged_tower_is_saved_and_read(tower: TimmTower, tmp_path: Path) -> None:
    names = set(tower.state_dict())
    apply_plan(tower, PLAN)
    for name, tensor in tower.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(tensor, std=0.1)
    trained = tower(pixels())
    merge_lora(tower)
    assert set(tower.state_dict()) == names
    torch.testing.assert_close(tower(pixels()), trained, atol=1e-4, rtol=1e-4)
    tower.save(tmp_path, torch.float32)
    assert torch.equal(open_tower(TowerConfig(weights=str(tmp_path)))(pixels()), tower(pixels()))


def test_tensors_that_do_not_fit_are_listed(tower: TimmTower, tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in tower.vision.state_dict().items()}
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors | {"odd": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        open_tower(TowerConfig(weights=str(tmp_path)))
    assert f"missing: {gone}" in str(caught.value)
    assert "unknown: odd (2,)" in str(caught.value)


def test_the_cost_is_that_of_the_model(tower: TimmTower) -> None:
    expected = cost(tower.shape, PLAN, HeadConfig(), half=False)
    model = build_prompt_model(tower, tower.shape.width, PLAN, HeadConfig(), seed=0)
    with FlopCounterMode(display=False, custom_mapping=FLOP) as counter:
        model(pixels())
    assert counter.get_total_flops() == ROWS * expected.forward
    assert 0.5 * expected.forward < expected.backward < 4 * expected.forward
    tensors = list(model.parameters())
    assert expected.parameters == sum(tensor.numel() for tensor in tensors)
    assert expected.learned == sum(t.numel() for t in tensors if t.requires_grad)
    assert expected.activations > 0


def test_a_fine_tune_learns(tower: TimmTower, tmp_path: Path) -> None:
    config = config_of(str(tmp_path), PLAN, optim__epochs=2, optim__lr=1e-3)
    trained = run_loop(config, MemoryRows(32, seed=0), MemoryRows(20, seed=1))
    assert trained.reported[-1]["train_loss"] < trained.reported[0]["train_loss"]


def test_a_missing_timm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"architecture": "convnext_xxlarge", "pretrained_cfg": {"input_size": [3, 256, 256]}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    monkeypatch.setitem(sys.modules, "timm", None)
    for read in (read_shape, open_tower):
        with pytest.raises(UserError, match=r"pip install 'img2prompt\[timm\]'"):
            read(TowerConfig(weights=str(tmp_path)))


def test_an_impossible_size_is_refused(tmp_path: Path) -> None:
    fields = {"architecture": "x", "pretrained_cfg": {"input_size": [3, 256, 128]}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"input_size \[3, 256, 128\]; allowed: \[3, S, S\]"):
        read_shape(TowerConfig(weights=str(tmp_path)))
