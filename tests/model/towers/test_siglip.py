import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CPU, MemoryRows, config_of, model_of, run_loop
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import PlanConfig
from img2prompt.data.images import resize
from img2prompt.errors import UserError
from img2prompt.model.lora import merge_lora
from img2prompt.model.plan import apply_plan
from img2prompt.model.towers.build import open_tower, read_shape
from img2prompt.model.towers.siglip import SiglipTower
from img2prompt.model.towers.vit_shape import VitShape
from img2prompt.train.engines.build import build_engine

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 99,
}
PLAN = PlanConfig(lora_rate=0.34, nfz_rate=0.34, lora_rank=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip")
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(folder)
    return folder


def opened(checkpoint: Path, **settings) -> SiglipTower:
    tower = open_tower(TowerConfig(weights=str(checkpoint), **settings))
    assert isinstance(tower, SiglipTower)
    return tower


@pytest.fixture
def tower(checkpoint: Path) -> SiglipTower:
    return opened(checkpoint)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def pixels(size: int = 32) -> torch.Tensor:
    return torch.from_numpy(noise(3, size, size, 3))


@torch.no_grad()
def test_features_equal_those_of_transformers(checkpoint: Path, tower: SiglipTower) -> None:
    reference = SiglipVisionModel.from_pretrained(checkpoint, attn_implementation="eager")
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pictures = processor(list(pixels().numpy()), return_tensors="pt")
    features = tower(pixels())
    assert features.shape == (3, tower.shape.width) == (3, 32)
    assert features.std(dim=0).mean() > 0.01
    torch.testing.assert_close(features, reference(**pictures).pooler_output, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_whole_siglip_gives_its_vision_feature(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)).eval()
    whole.save_pretrained(tmp_path)
    tower = opened(tmp_path)
    expected = whole.vision_model(tower.normalise(pixels())).pooler_output
    torch.testing.assert_close(tower(pixels()), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [16, 48])
@torch.no_grad()
def test_another_resolution_is_interpolated_as_transformers_does(
    size: int, checkpoint: Path
) -> None:
    tower = opened(checkpoint, image_size=size, resize_positions=True)
    assert (tower.shape.size, tower.shape.tokens) == (size, (size // 8) ** 2)
    reference = SiglipVisionModel.from_pretrained(checkpoint)
    expected = reference(tower.normalise(pixels(size)), interpolate_pos_encoding=True)
    torch.testing.assert_close(tower(pixels(size)), expected.pooler_output, atol=1e-5, rtol=0)


def test_a_checkpoint_without_a_pooling_head_is_refused(tmp_path: Path) -> None:
    SiglipVisionModel(SiglipVisionConfig(**VISION, vision_use_head=False)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="vision_use_head false; allowed: true"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("fields", "tokens", "share"),
    [
        ({"hidden_size": 1024, "num_hidden_layers": 24, "image_size": 256}, 256, 0.42),
        ({"hidden_size": 1152, "num_hidden_layers": 27, "image_size": 384}, 576, 1.4),
        (
            {"hidden_size": 1152, "num_hidden_layers": 27, "image_size": 384, "patch_size": 14},
            729,
            1.8,
        ),
    ],
    ids=["L/16-256", "So400m/16-384", "So400m/14-384"],
)
def test_the_sizes_of_siglip_2_are_known(
    fields: dict, tokens: int, share: float, tmp_path: Path
) -> None:
    """Parameters are those of transformers' model, FLOP a share of CLIP ViT-L/14-336's 382 G."""
    hidden = {1024: 4096, 1152: 4304}[fields["hidden_size"]]
    vision = {"patch_size": 16, "num_attention_heads": 16, "intermediate_size": hidden, **fields}
    config = {"model_type": "siglip", "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = read_shape(TowerConfig(weights=str(tmp_path)))
    assert isinstance(shape, VitShape)
    assert shape.tokens == tokens
    with torch.device("meta"):
        model = SiglipVisionModel(SiglipVisionConfig(**vision))
    cost = shape.cost(PlanConfig(), half=False)
    assert cost.parameters == sum(tensor.numel() for tensor in model.parameters())
    assert cost.forward == pytest.approx(share * 381.9e9, rel=0.05)


@pytest.mark.parametrize(
    ("config", "learning"),
    [
        (PlanConfig(), ()),
        (PlanConfig(lora_rate=1.0), (".lora_", "post_layernorm")),
        (PLAN, (".lora_", "layers.2.", "post_layernorm", "vision.head.")),
        (PlanConfig(embeddings=True), ("vision.embeddings.", "post_layernorm")),
        (PlanConfig(nfz_rate=1.0, embeddings=True), ("vision.",)),
    ],
)
def test_exactly_the_planned_tensors_learn(
    tower: SiglipTower, config: PlanConfig, learning: tuple[str, ...]
) -> None:
    before = tower(pixels())
    apply_plan(tower, config)
    torch.testing.assert_close(tower(pixels()), before, atol=1e-6, rtol=0)
    for name, tensor in tower.named_parameters():
        assert tensor.requires_grad == any(part in name for part in learning), name


@torch.no_grad()
def test_a_merged_tower_is_saved_for_transformers(tower: SiglipTower, tmp_path: Path) -> None:
    names, before = set(tower.state_dict()), tower(pixels())
    apply_plan(tower, PLAN)
    for name, tensor in tower.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(tensor, std=0.3)
    trained = tower(pixels())
    assert (trained - before).abs().max() > 1e-3
    merge_lora(tower)
    assert set(tower.state_dict()) == names
    tower.save(tmp_path, torch.float32)
    tower.save_processor(tmp_path, "crop")
    theirs, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(theirs, SiglipVisionModel)
    assert not any(report.values())
    pictures = AutoImageProcessor.from_pretrained(tmp_path)(
        list(pixels().numpy()), return_tensors="pt"
    )
    torch.testing.assert_close(theirs(**pictures).pooler_output, trained, atol=1e-5, rtol=0)
    assert torch.equal(opened(tmp_path)(pixels()), tower(pixels()))


@pytest.mark.parametrize("fit", ["crop", "whole"])
def test_a_saved_processor_makes_the_pixels_that_shards_hold(
    fit, tower: SiglipTower, tmp_path: Path
) -> None:
    tower.save_processor(tmp_path, fit)
    pictures = [noise(40, 61, 3), noise(40, 40, 3), noise(32, 32, 3)]
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(pictures, return_tensors="pt")
    ours = tower.normalise(torch.from_numpy(np.stack([resize(p, 32, fit) for p in pictures])))
    levels = (theirs.pixel_values - ours).abs() * 255 * 0.5  # two resizers round differently
    assert levels.max() <= 2.01
    assert (levels > 0.5).float().mean() < 0.02


def test_recomputing_gives_the_same_gradients(checkpoint: Path) -> None:
    gradients = []
    for recompute in (False, True):
        config = config_of(str(checkpoint), PLAN, engine__recompute=recompute)
        model = model_of(config).train()
        assert model.tower is not None
        runs: list[int] = []
        for layer in model.tower.layers:
            layer.get_submodule("mlp").register_forward_pre_hook(
                lambda *_, runs=runs: runs.append(1)
            )
        engine = build_engine(model, config, 9, CPU)
        engine.backward(engine.forward(pixels()).square().mean())
        assert (len(runs) > 3) == recompute
        gradients.append({n: t.grad for n, t in model.named_parameters() if t.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=0)


def test_a_fine_tune_learns(checkpoint: Path) -> None:
    config = config_of(str(checkpoint), PLAN, optim__epochs=4, optim__lr=1e-3)
    trained = run_loop(config, MemoryRows(64, seed=0), MemoryRows(20, seed=1))
    first, last = trained.reported[0], trained.reported[-1]
    assert last["train_loss"] < first["train_loss"]
    assert last["val_cosine"] > first["val_cosine"]
    names = trained.saved[-1].engine.model.keys()
    assert "tower.vision.head.attention.in_proj_weight" in names
    assert "tower.vision.encoder.layers.1.self_attn.q_proj.lora_A.default.weight" in names
    assert not any("embeddings" in name for name in names)


@pytest.mark.slow
def test_compiled_layers_learn_the_same(checkpoint: Path) -> None:
    config, rows = config_of(str(checkpoint), PLAN, optim__epochs=1), MemoryRows(16, seed=1)
    expected = run_loop(config, rows, rows)
    torch._dynamo.utils.counters.clear()
    compiled = run_loop(config.replace({"engine.compile": "on"}), rows, rows)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4
    assert compiled.reported[-1]["val_cosine"] == pytest.approx(
        expected.reported[-1]["val_cosine"], abs=1e-4
    )
