from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from img2prompt.config.tower import TowerConfig
from img2prompt.data.images import decode, resize
from img2prompt.model.towers.build import open_tower
from img2prompt.model.towers.clip import ClipTower

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "initializer_factor": 8.0,  # features that differ between pictures
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folder)
    return folder


@pytest.fixture
def tower(checkpoint: Path) -> ClipTower:
    return opened(TowerConfig(weights=str(checkpoint)))


def opened(config: TowerConfig) -> ClipTower:
    tower = open_tower(config)
    assert isinstance(tower, ClipTower)
    return tower


def processor(size: int) -> CLIPImageProcessorPil:
    square = {"height": size, "width": size}
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@torch.no_grad()
def test_features_equal_those_of_transformers(checkpoint: Path, tower: ClipTower) -> None:
    pictures = [noise(40, 61, 3), noise(61, 33, 3), noise(28, 28, 3)]
    reference = CLIPVisionModel.from_pretrained(checkpoint, attn_implementation="eager")
    batch = np.stack([resize(picture, 28, "crop") for picture in pictures])
    expected = reference(**processor(28)(list(batch), return_tensors="pt")).pooler_output
    features = tower(torch.from_numpy(batch))
    assert features.shape == (3, 32)
    assert features.std(dim=0).mean() > 0.05
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_features_of_real_pictures_equal_those_of_transformers(
    shared_data: Path, checkpoint: Path
) -> None:
    paths = sorted((shared_data / "pictures").iterdir())[::100]
    tower = open_tower(TowerConfig(weights=str(checkpoint), image_size=56, resize_positions=True))
    batch = np.stack([resize(decode(path.read_bytes()), 56, "crop") for path in paths])
    reference = CLIPVisionModel.from_pretrained(checkpoint)
    pixels = processor(56)(list(batch), return_tensors="pt")
    expected = reference(**pixels, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(tower(torch.from_numpy(batch)), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_whole_clip_gives_its_vision_feature_before_projection(tmp_path: Path) -> None:
    torch.manual_seed(1)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION)).eval()
    clip.save_pretrained(tmp_path)
    pixels = torch.from_numpy(noise(2, 28, 28, 3))
    tower = open_tower(TowerConfig(weights=str(tmp_path)))
    expected = clip.vision_model(tower.normalise(pixels)).pooler_output
    feature = tower(pixels)
    torch.testing.assert_close(feature, expected, atol=1e-5, rtol=0)


def test_normalise_is_the_processors_arithmetic(tower: ClipTower) -> None:
    picture = np.arange(256).repeat(3 * 4).reshape(32, 32, 3).astype(np.uint8)
    expected = processor(32)(picture, return_tensors="pt").pixel_values
    pixels = tower.normalise(torch.from_numpy(picture)[None])
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


def test_a_tower_knows_its_size(tower: ClipTower, checkpoint: Path) -> None:
    assert (tower.shape.size, tower.shape.width, tower.shape.depth) == (28, 32, 2)
    assert (tower.shape.patches, tower.shape.tokens) == (4, 5)
    assert not tower.training
    assert tower.vision.config._attn_implementation == "sdpa"
    larger = TowerConfig(weights=str(checkpoint), image_size=42, resize_positions=True)
    assert open_tower(larger).shape.size == 42


def test_the_base_fingerprint_is_of_the_first_weights(tower: ClipTower, checkpoint: Path) -> None:
    again = open_tower(TowerConfig(weights=str(checkpoint)))
    assert again.base_fingerprint == tower.base_fingerprint
    with torch.no_grad():
        tower.vision.post_layernorm.bias += 1
    assert again.base_fingerprint == tower.base_fingerprint
    assert ClipTower(tower.vision).base_fingerprint != again.base_fingerprint


def test_a_tower_in_half_precision_gives_float32_features(tower: ClipTower) -> None:
    pixels = torch.from_numpy(noise(2, 28, 28, 3))
    exact = tower(pixels)
    half = tower.to(torch.bfloat16)(pixels)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.1


def test_a_fresh_tower_depends_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = ClipTower.fresh(VISION, seed=3)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert first.base_fingerprint == ClipTower.fresh(VISION, seed=3).base_fingerprint
    assert first.base_fingerprint != ClipTower.fresh(VISION, seed=4).base_fingerprint
    assert all(tensor.requires_grad for tensor in first.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@torch.no_grad()
def test_a_saved_tower_is_read_by_transformers_and_by_us(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    tower = ClipTower.fresh(VISION, seed=0).eval()
    tower.save(tmp_path / "new" / "folder", dtype)
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    ours = opened(TowerConfig(weights=str(folder)))
    theirs, report = CLIPVisionModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert theirs.dtype == dtype
    pixels = torch.from_numpy(noise(2, 28, 28, 3))
    assert torch.equal(ours(pixels), theirs.float()(tower.normalise(pixels)).pooler_output)
    rounded = {name: t.to(dtype).float() for name, t in tower.vision.state_dict().items()}
    assert all(torch.equal(t, rounded[name]) for name, t in ours.vision.state_dict().items())
    assert tower.vision.dtype == torch.float32
    if dtype == torch.float32:
        assert ours.base_fingerprint == tower.base_fingerprint


@pytest.mark.parametrize("fit", ["crop", "whole"])
def test_a_saved_processor_makes_the_pixels_that_shards_hold(
    fit: Literal["crop", "whole"], tmp_path: Path
) -> None:
    tower = ClipTower.fresh(VISION, seed=0)
    tower.save_processor(tmp_path, fit)
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]
    pictures = [noise(40, 61, 3), noise(40, 40, 3), noise(20, 28, 3), noise(28, 28, 3)]
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(pictures, return_tensors="pt")
    ours = tower.normalise(torch.from_numpy(np.stack([resize(p, 28, fit) for p in pictures])))
    levels = (theirs.pixel_values - ours).abs() * 255 * 0.26  # two resizers round differently
    assert levels.max() <= 2
    assert (levels > 0.5).float().mean() < 0.02
