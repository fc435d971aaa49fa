"""Towers side by side, against each tower alone; and a probe on them: predict and export."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from small_artifacts import pixels_of, write_shards
from tiny import config_of, model_of

from img2prompt.config.predict import ExportConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import PlanConfig, TrainConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import WEIGHTS, learned_state, load_prompt_model
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.build import checkpoint_stamp, open_tower, read_shape
from img2prompt.model.towers.clip import ClipTower
from img2prompt.model.towers.siglip import SiglipTower
from img2prompt.predict import export
from img2prompt.predictors.trained import TrainedRun

SIZE, SMALL = 32, 16
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TowerConfig:
    """CLIP at two sides, the smaller with resized positions, and a SigLIP."""
    folder = tmp_path_factory.mktemp("towers")
    clip, siglip = folder / "clip", folder / "sig@lip"
    for path, family, width in ((clip, ClipTower, 24), (siglip, SiglipTower, 32)):
        path.mkdir()
        family.fresh({**VISION, "hidden_size": width}, seed=1).save(path, torch.float32)
    beside = (f"{clip}@{SMALL}", str(siglip))
    return TowerConfig(weights=str(clip), beside=beside, resize_positions=True)


@pytest.fixture(scope="module")
def tower(config: TowerConfig) -> Tower:
    return open_tower(config)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8))


def test_members_are_towers_alone(config: TowerConfig) -> None:
    clip, small, siglip = config.members
    assert [member.image_size for member in config.members] == [0, SMALL, 0]
    assert (clip.weights, siglip.weights) == (small.weights, config.beside[1])
    assert all(member.beside == () and member.resize_positions for member in config.members)
    assert clip.members == (clip,)


@torch.inference_mode()
def test_features_are_those_of_each_tower_one_after_the_other(
    config: TowerConfig, tower: Tower, pixels: torch.Tensor
) -> None:
    clip, small, siglip = (open_tower(member) for member in config.members)
    planes = pixels.permute(0, 3, 1, 2).float()
    halves = F.interpolate(planes, (SMALL, SMALL), mode="bicubic", antialias=True).clamp(0, 255)
    shrunk = halves.permute(0, 2, 3, 1)
    alone = [clip(pixels), small(shrunk), siglip(pixels)]
    torch.testing.assert_close(tower(pixels), torch.cat(alone, dim=1))
    assert tower(pixels).shape == (3, 24 + 24 + 32)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_a_smaller_picture_is_an_average_not_a_sample(tower: Tower) -> None:
    board = (np.indices((SIZE, SIZE)).sum(axis=0) % 2 * 255).astype(np.uint8)
    grey = np.full((SIZE, SIZE), 127, np.uint8)
    stack = torch.from_numpy(np.stack([board, grey]))[..., None].expand(-1, -1, -1, 3)
    checkered, plain = tower(stack)[:, 24:48]
    assert (checkered - plain).abs().max() < 0.1 * plain.abs().max()


def test_sizes_cost_and_stamp_are_those_of_all(config: TowerConfig, tower: Tower) -> None:
    shape, shapes = read_shape(config), [read_shape(member) for member in config.members]
    assert shape == tower.shape
    assert (shape.depth, shape.width, shape.size) == (6, 80, SIZE)
    costs = [each.cost(PlanConfig(), half=False) for each in shapes]
    cost = shape.cost(PlanConfig(), half=False)
    assert cost.forward == sum(each.forward for each in costs)
    assert cost.parameters == sum(each.parameters for each in costs)
    assert len(tower.layers) == 6
    assert len(checkpoint_stamp(config).split()) == 3


def test_another_side_is_another_tower(config: TowerConfig, tower: Tower) -> None:
    swapped = config.replace({"image_size": SMALL, "beside": [config.weights, config.beside[1]]})
    assert open_tower(swapped).base_fingerprint != tower.base_fingerprint
    assert open_tower(config).base_fingerprint == tower.base_fingerprint


@pytest.mark.parametrize("beside", [[""], ["fresh"], ["demo", "fresh"]])
def test_towers_without_weights_are_refused(beside: list[str]) -> None:
    with pytest.raises(UserError, match=r"tower\.beside is .*allowed: NAME or NAME@SIZE"):
        TowerConfig(beside=tuple(beside))
    assert TowerConfig(weights="fresh").members == (TowerConfig(weights="fresh"),)


def test_layers_that_learn_are_refused(config: TowerConfig) -> None:
    with pytest.raises(UserError, match=r"tower\.beside is .*a fine-tune trains one tower"):
        TrainConfig(name="run", tower=config, plan=PlanConfig(nfz_rate=0.5))


@torch.inference_mode()
def test_a_probe_predicts_pictures_and_is_exported(
    config: TowerConfig, tower: Tower, tmp_path: Path
) -> None:
    shards = write_shards(tmp_path / "shards")
    probe = config_of("demo", PlanConfig()).replace({"tower": config.to_dict()})
    inputs = {"tower": tower.base_fingerprint, "shards": shards.fingerprint}
    draft = Draft.open(str(tmp_path / "run"), "train", probe, inputs)
    draft.write_bytes(WEIGHTS, safetensors.torch.save(learned_state(model_of(probe))))
    spec = TrainedRun(draft.publish(), name="probe")
    spec.check(shards)
    pictures = pixels_of(shards, "test")
    answers = spec.load(torch.device("cpu")).predict(pictures).vectors
    exported = export.run(ExportConfig(), spec, shards, str(tmp_path / "export"))
    folders = [Path(exported.path(f"{export.TOWER}/{number}")) for number in (1, 2, 3)]
    assert all((folder / "preprocessor_config.json").exists() for folder in folders)
    again = TowerConfig(weights=str(folders[0]), beside=tuple(map(str, folders[1:])))
    head = safetensors.torch.load_file(exported.path(export.HEAD))
    expected = open_tower(again)(pictures) @ head["weight"].T + head["bias"]
    torch.testing.assert_close(load_prompt_model(spec.run)(pictures), expected)
    np.testing.assert_allclose(answers, expected.numpy(), atol=0.05)  # where bf16 is used
