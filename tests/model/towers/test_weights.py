import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from img2prompt.config.tower import TowerConfig
from img2prompt.errors import UserError
from img2prompt.model.towers import weights
from img2prompt.model.towers.build import open_tower
from img2prompt.model.towers.clip import ClipTower
from img2prompt.model.towers.weights import fingerprint, resize_positions

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
VISION = {**LAYERS, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TEXT = {**LAYERS, "num_attention_heads": 2, "vocab_size": 99, "eos_token_id": 2, "bos_token_id": 1}
POSITIONS = "embeddings.position_embedding.weight"

State = dict[str, Tensor]


def load(config: TowerConfig) -> tuple[CLIPVisionConfig, State]:
    """Config and weights of a tower."""
    tower = open_tower(config)
    assert isinstance(tower, ClipTower)
    assert isinstance(tower.vision.config, CLIPVisionConfig)
    return tower.vision.config, tower.vision.state_dict()


@pytest.fixture(scope="module")
def vision() -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(**VISION))


@pytest.fixture(scope="module")
def state(vision: CLIPVisionModel) -> State:
    return vision.state_dict()


def prefixed(state: State) -> State:
    return {f"vision_model.{name}": tensor for name, tensor in state.items()}


def write_config(folder: Path, **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"model_type": "clip_vision_model", **VISION, **changes}
    (folder / "config.json").write_text(json.dumps(fields))


def write(folder: Path, tensors: State, **changes: object) -> Path:
    write_config(folder, **changes)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def bare(folder: Path, vision: CLIPVisionModel) -> None:
    vision.save_pretrained(folder)
    assert "embeddings.class_embedding" in load_file(folder / "model.safetensors")


def with_projection(folder: Path, vision: CLIPVisionModel) -> None:
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))
    model.vision_model.load_state_dict(vision.state_dict())
    model.save_pretrained(folder)
    assert "visual_projection.weight" in load_file(folder / "model.safetensors")


def whole_clip(folder: Path, vision: CLIPVisionModel) -> None:
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION))
    model.vision_model.load_state_dict(vision.state_dict())
    model.save_pretrained(folder)
    assert {"logit_scale", "text_projection.weight"} < set(load_file(folder / "model.safetensors"))


def transformers_4(folder: Path, vision: CLIPVisionModel) -> None:
    ids = {"vision_model.embeddings.position_ids": torch.arange(5).expand(1, -1)}
    write(folder, prefixed(vision.state_dict()) | ids)


def sharded(folder: Path, vision: CLIPVisionModel) -> None:
    vision.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def pickled(folder: Path, vision: CLIPVisionModel) -> None:
    write_config(folder)
    torch.save(prefixed(vision.state_dict()), folder / "pytorch_model.bin")


def sharded_pickled(folder: Path, vision: CLIPVisionModel) -> None:
    write_config(folder)
    tensors = list(vision.state_dict().items())
    weight_map = {}
    for number, part in enumerate((tensors[:7], tensors[7:])):
        torch.save(dict(part), folder / f"pytorch_model-{number}.bin")
        weight_map |= {name: f"pytorch_model-{number}.bin" for name, _ in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "layout",
    [bare, with_projection, whole_clip, transformers_4, sharded, pickled, sharded_pickled],
)
def test_every_layout_gives_the_same_tensors(
    layout: Callable, tmp_path: Path, vision: CLIPVisionModel, state: State
) -> None:
    layout(tmp_path, vision)
    config, tensors = load(TowerConfig(weights=str(tmp_path)))
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    assert {name: getattr(config, name) for name in VISION} == VISION


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_loaded_as_float32(
    dtype: torch.dtype, tmp_path: Path, state: State
) -> None:
    half = {name: tensor.to(dtype) for name, tensor in state.items()}
    folder = write(tmp_path, half, dtype=str(dtype).removeprefix("torch."))
    config, tensors = load(TowerConfig(weights=str(folder)))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert config.dtype == torch.float32
    assert all(torch.equal(tensors[name], half[name].float()) for name in half)
    assert fingerprint(tensors) == fingerprint(half) != fingerprint(state)


def test_all_tensors_that_do_not_fit_are_listed(tmp_path: Path, state: State) -> None:
    tensors = prefixed(state)
    del tensors["vision_model.pre_layrnorm.bias"]
    del tensors["vision_model.encoder.layers.1.mlp.fc1.weight"]
    tensors["vision_model.post_layernorm.weight"] = torch.zeros(31)
    tensors["vision_model.adapter.weight"] = torch.zeros(2, 3)
    tensors["post_layernorm.bias"] = torch.zeros(32)
    with pytest.raises(UserError) as error:
        load(TowerConfig(weights=str(write(tmp_path, tensors))))
    lines = str(error.value).splitlines()
    assert str(tmp_path) in lines[0]
    assert sorted(line.strip() for line in lines[1:]) == [
        "missing: vision_model.encoder.layers.1.mlp.fc1.weight (64, 32)",
        "missing: vision_model.pre_layrnorm.bias (32,)",
        "unknown: post_layernorm.bias (32,)",
        "unknown: vision_model.adapter.weight (2, 3)",
        "wrong size: vision_model.post_layernorm.weight is (31,), its config.json needs (32,)",
    ]


def test_positions_of_another_size_are_not_skipped(tmp_path: Path, state: State) -> None:
    folder = write(tmp_path, state, image_size=56)
    with pytest.raises(UserError, match=r"wrong size: .*position_embedding.* \(5, 32\).* \(17, 32"):
        load(TowerConfig(weights=str(folder)))


@pytest.mark.parametrize("side", [14, 42, 56, 70])
def test_another_resolution_is_interpolated_as_transformers_does(
    side: int, tmp_path: Path, state: State, vision: CLIPVisionModel
) -> None:
    folder = write(tmp_path, state)
    config = TowerConfig(weights=str(folder), image_size=side, resize_positions=True)
    vision_config, tensors = load(config)
    assert vision_config.image_size == side
    count = (side // 14) ** 2 + 1
    embeddings = vision.embeddings
    expected = embeddings.interpolate_pos_encoding(torch.zeros(1, count, 32), side, side)[0]
    assert tensors[POSITIONS].shape == (count, 32)
    torch.testing.assert_close(tensors[POSITIONS], expected.detach(), atol=1e-6, rtol=0)
    assert torch.equal(tensors[POSITIONS][0], state[POSITIONS][0])
    others = state.keys() - {POSITIONS}
    assert all(torch.equal(tensors[name], state[name]) for name in others)


def test_rows_and_columns_keep_their_places() -> None:
    rows = torch.arange(3.0).repeat_interleave(3)
    positions = torch.cat([torch.full((1, 2), 9.0), torch.stack([rows, torch.zeros(9)], 1)])
    resized = resize_positions(positions, 6, class_token=True)
    grid = resized[1:, 0].reshape(6, 6)
    assert torch.allclose(grid, grid[:, :1].expand(6, 6))
    assert (grid.diff(dim=0) > 0).all()
    assert (resized[1:, 1] == 0).all()


def test_another_resolution_must_be_asked_for_and_fit_the_patch(
    tmp_path: Path, state: State
) -> None:
    folder = str(write(tmp_path, state))
    assert load(TowerConfig(weights=folder, image_size=28))[0].image_size == 28
    with pytest.raises(UserError, match=r"image_size is 56, .* made for 28.*resize-positions"):
        load(TowerConfig(weights=folder, image_size=56))
    with pytest.raises(UserError, match="image_size is 50; allowed: a multiple of the patch, 14"):
        load(TowerConfig(weights=folder, image_size=50, resize_positions=True))


def test_fingerprint_sees_names_shapes_and_values(state: State) -> None:
    reference = fingerprint(state)
    assert len(reference) == 16
    assert fingerprint(dict(reversed(state.items()))) == reference
    name = "pre_layrnorm.bias"
    one_bit = state | {name: state[name] + torch.eye(32)[3] * 1e-30}
    other_shape = state | {name: state[name].reshape(4, 8)}
    other_name = {("x" if n == name else n): tensor for n, tensor in state.items()}
    prints = {fingerprint(s) for s in (state, one_bit, other_shape, other_name)}
    assert len(prints) == 4
    assert fingerprint(
        {n: t.movedim(0, -1).contiguous().movedim(-1, 0) for n, t in state.items()}
    ) == (reference)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "resnet"},
            r"model_type 'resnet'; allowed: clip, clip_vision_model, siglip, siglip_vision_model",
        ),
        ({"model_type": "clip_text_model"}, "model_type 'clip_text_model'"),
        ({"hidden_size": "wide"}, "is not a valid CLIP vision config"),
        ({"num_attention_heads": 5}, "num_attention_heads 5|is not a valid CLIP vision config"),
        ({"image_size": [28, 56]}, r"image_size \[28, 56\].*allowed: one number"),
        ({"num_channels": 1}, "num_channels 1"),
    ],
)
def test_a_foreign_config_is_refused(
    changes: dict, message: str, tmp_path: Path, state: State
) -> None:
    folder = write(tmp_path, state, **changes)
    with pytest.raises(UserError, match=message):
        load(TowerConfig(weights=str(folder)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0not a header"),
        ("model.safetensors", b""),
        ("pytorch_model.bin", b"not a pickle"),
        ("pytorch_model.bin", b""),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}'),
        ("model.safetensors.index.json", b"{}"),
        ("model.safetensors.index.json", b"[1]"),
        ("config.json", b"{"),
    ],
)
def test_unreadable_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        load(TowerConfig(weights=str(tmp_path)))


class Stowaway:
    """Stands for code that an unsafe pickle would run."""


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"a": Stowaway()}])
def test_a_bin_file_may_hold_tensors_only(content: object, tmp_path: Path) -> None:
    write_config(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read as weights"):
        load(TowerConfig(weights=str(tmp_path)))


def test_absent_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="that folder does not exist"):
        load(TowerConfig(weights=str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load(TowerConfig(weights=str(tmp_path)))
    write_config(tmp_path)
    with pytest.raises(UserError, match=r"holds no weights; allowed: model\.safetensors"):
        load(TowerConfig(weights=str(tmp_path)))


def test_an_absent_demo_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "DEMO", tmp_path)
    with pytest.raises(UserError, match=r"python jobs/tower\.py"):
        load(TowerConfig())


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_name_is_found_in_the_local_cache(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tower"
    snapshot = repository / "snapshots" / "0123abc"
    write_config(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    config = TowerConfig(weights="someone/tower")
    with pytest.raises(UserError, match=r"holds no weights.*--tower\.download"):
        load(config)
    saved = prefixed(state)
    if file == "model.safetensors":
        save_file(saved, snapshot / file)
    else:
        torch.save(saved, snapshot / file)
    assert fingerprint(load(config)[1]) == fingerprint(state)


@pytest.mark.parametrize("name", ["someone/absent", "absent", "not/a/name", "bad name!"])
def test_an_absent_hub_name_offers_folder_or_download(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"Give a checkpoint folder, or .*--tower\.download"):
        load(TowerConfig(weights=name))
