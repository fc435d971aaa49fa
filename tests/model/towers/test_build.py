import json
from pathlib import Path

import pytest
import torch

from img2prompt.config.tower import TowerConfig
from img2prompt.errors import UserError
from img2prompt.model.towers import weights
from img2prompt.model.towers.build import DEMO_SHAPE, open_tower, read_shape
from img2prompt.model.towers.clip import ClipTower
from img2prompt.model.towers.siglip import SiglipTower
from img2prompt.model.towers.vit import VitTower

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(params=[ClipTower, SiglipTower], ids=lambda family: family.family)
def family(request: pytest.FixtureRequest) -> type[VitTower]:
    return request.param


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights fails."""
    monkeypatch.setattr(weights, "read_weights", None)


def test_a_checkpoint_is_opened_by_its_own_family(family: type[VitTower], tmp_path: Path) -> None:
    tower = family.fresh(VISION, seed=0)
    tower.save(tmp_path, torch.float32)
    config = TowerConfig(weights=str(tmp_path))
    opened = open_tower(config)
    assert type(opened) is family
    assert opened.base_fingerprint == tower.base_fingerprint
    assert read_shape(config) == opened.shape == tower.shape


@pytest.mark.usefixtures("no_weights")
def test_a_shape_is_read_without_weights(family: type[VitTower], tmp_path: Path) -> None:
    family.fresh(VISION, seed=0).save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    shape = read_shape(TowerConfig(weights=str(tmp_path)))
    assert (shape.depth, shape.width, shape.mlp) == (2, 32, 64)
    assert (shape.heads, shape.size, shape.patch, shape.patches) == (2, 32, 8, 16)
    larger = TowerConfig(weights=str(tmp_path), image_size=48, resize_positions=True)
    assert (read_shape(larger).size, read_shape(larger).patches) == (48, 36)
    with pytest.raises(UserError, match=r"image_size is 48, .* made for 32.*resize-positions"):
        read_shape(TowerConfig(weights=str(tmp_path), image_size=48))


@pytest.mark.usefixtures("no_weights")
def test_a_fresh_tower_has_the_shape_of_the_demo() -> None:
    demo, fresh = read_shape(TowerConfig()), read_shape(TowerConfig(weights="fresh"))
    assert demo == fresh == open_tower(TowerConfig(weights="fresh")).shape
    assert (demo.width, demo.depth, demo.size) == (160, 7, 64)
    assert DEMO_SHAPE["hidden_size"] == 160


@pytest.mark.usefixtures("no_weights")
def test_the_shape_of_a_hub_name_needs_no_weights_in_the_cache(
    family: type[VitTower], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tower"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    fields = {"model_type": family.model_types[0], "vision_config": VISION}
    (snapshot / "config.json").write_text(json.dumps(fields))
    assert read_shape(TowerConfig(weights="someone/tower")).width == 32


@pytest.mark.parametrize("fields", [{"model_type": "resnet"}, {}])
def test_an_unknown_family_is_refused_with_the_known_ones(fields: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for read in (open_tower, read_shape):
        with pytest.raises(UserError, match=r"allowed: clip, .*, siglip, siglip_vision_model"):
            read(TowerConfig(weights=str(tmp_path)))


def test_naflex_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(UserError, match=r"NaFlex.*fixed resolution, such as google/siglip2-large"):
        read_shape(TowerConfig(weights=str(tmp_path)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_config": [1]}, "vision_config that is no JSON object"),
        ({"num_attention_heads": 5}, "num_attention_heads|heads"),
        ({"hidden_size": "wide"}, "is not a valid .* vision config"),
        ({"image_size": [28, 56]}, r"image_size \[28, 56\].*allowed: one number"),
    ],
)
def test_an_impossible_config_is_refused(
    family: type[VitTower], fields: dict, message: str, tmp_path: Path
) -> None:
    config = {"model_type": family.model_types[1], **VISION, **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_shape(TowerConfig(weights=str(tmp_path)))
