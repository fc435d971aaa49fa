"""Weight files as people have them: pointers, wrappers' names, foreign names, hostile files."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from img2prompt.config.tower import TowerConfig
from img2prompt.errors import UserError
from img2prompt.model.text import PACKAGE, PromptEncoder, check_model
from img2prompt.model.towers.build import open_tower, read_shape
from img2prompt.model.towers.clip import ClipTower
from img2prompt.model.towers.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteTower
from img2prompt.model.towers.siglip import SiglipTower

FIELDS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 1710540580
"""

State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoint of a CLIP tower."""
    ClipTower.fresh(FIELDS, seed=0).save(tmp_path, torch.float32)
    return tmp_path


@pytest.fixture
def state(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


def load(folder: Path) -> State:
    tower = open_tower(TowerConfig(weights=str(folder)))
    assert isinstance(tower, ClipTower)
    return tower.vision.state_dict()


def error_of(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(folder)
    return str(caught.value)


def save(folder: Path, tensors: State) -> None:
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("family", ["clip", "siglip", "efficientnet-lite"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_weight_is_refused_with_its_tensor(
    family: str, value: float, tmp_path: Path
) -> None:
    if family == "efficientnet-lite":
        small = EfficientNetLiteConfig(width_coefficient=0.1, depth_coefficient=0.1, image_size=32)
        EfficientNetLiteTower.fresh(small, seed=0).save(tmp_path, torch.float16)
    else:
        kind = ClipTower if family == "clip" else SiglipTower
        kind.fresh(FIELDS, seed=0).save(tmp_path, torch.float16)
    tensors = load_file(tmp_path / "model.safetensors")
    name, tensor = max(tensors.items(), key=lambda item: item[1].numel())
    tensor.view(-1)[7] = value
    save(tmp_path, tensors)
    with pytest.raises(UserError) as caught:
        open_tower(TowerConfig(weights=str(tmp_path)))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: 1 of {tensor.numel()} values of tensor {name} are non-")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_recognised(name: str, folder: Path) -> None:
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(POINTER)
    expected = f"{folder / name} is a Git LFS pointer, not the file itself: run `git lfs pull` in"
    assert error_of(folder).startswith(expected)
    if name == "config.json":
        with pytest.raises(UserError, match="Git LFS pointer"):
            read_shape(TowerConfig(weights=str(folder)))


@pytest.mark.parametrize("name", ["modules.json", "tokenizer.json", "1_Pooling/config.json"])
def test_a_pointer_in_the_folder_of_the_encoder_is_recognised(name: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=f"{tmp_path / name} is a Git LFS pointer"):
        check_model(str(tmp_path))


def test_an_encoder_with_a_non_finite_weight_is_refused(tmp_path: Path) -> None:
    package = Path(pytest.importorskip(PACKAGE).__file__).parent / "model"
    for path in package.rglob("*"):  # links save the time of a copy
        target = tmp_path / path.relative_to(package)
        target.mkdir() if path.is_dir() else os.link(path, target)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    tensors["embeddings.LayerNorm.weight"][3] = torch.inf
    weights.unlink()
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"encoder .*: 1 of 384 values of tensor .*LayerNorm\.weig"):
        PromptEncoder(str(tmp_path))


class Wrapped(nn.Module):
    """A training loop's module around a tower, as Lightning's are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


@pytest.mark.parametrize(
    ("prefix", "inside"),
    [
        ("module.", ""),
        ("_orig_mod.", ""),
        ("model.", ""),
        ("module._orig_mod.", ""),
        ("_orig_mod.module.", "vision_model."),
        ("module.model.", "vision_model."),
        ("_fsdp_wrapped_module.", ""),
    ],
)
def test_prefixes_of_wrappers_are_read(
    prefix: str, inside: str, folder: Path, state: State
) -> None:
    others = {"text_model.x": torch.zeros(2), "logit_scale": torch.zeros(1)} if inside else {}
    whole = {f"{inside}{name}": tensor for name, tensor in state.items()} | others
    save(folder, {f"{prefix}{name}": tensor for name, tensor in whole.items()})
    read = load(folder)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_names_that_torch_itself_gives_wrapped_modules_are_read(folder: Path, state: State) -> None:
    vision = open_tower(TowerConfig(weights=str(folder))).vision  # type: ignore[attr-defined]
    layers = vision.encoder.layers
    layers[0] = torch.compile(layers[0])
    names = Wrapped(vision).state_dict()
    assert "model.encoder.layers.0._orig_mod.mlp.fc1.weight" in names
    save(folder, names)
    read = load(folder)
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_a_prefix_of_some_tensors_is_not_guessed(folder: Path, state: State) -> None:
    save(folder, {**{f"module.{name}": t for name, t in state.items()}, "step": torch.zeros(1)})
    message = error_of(folder)
    assert "unknown: module.embeddings.class_embedding (32,)" in message


def test_equal_names_without_wrappers_are_not_merged(folder: Path, state: State) -> None:
    name = "post_layernorm.weight"
    save(folder, state | {f"_orig_mod.{name}": state[name] + 1})
    assert f"unknown: _orig_mod.{name}" in error_of(folder)


def test_openclip_names_are_named(folder: Path, state: State) -> None:
    tensors = {f"visual.{name}": tensor for name, tensor in state.items()}
    save(folder, tensors | {"transformer.resblocks.0.ln_1.weight": torch.zeros(2)})
    message = error_of(folder)
    assert f"has OpenCLIP's tensor names ({len(state)} begin with 'visual.')" in message
    assert "in transformers' format (config.json and model.safetensors)" in message
    assert "\n" not in message


def test_a_folder_with_openclip_files_only_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    assert "its open_clip_* files have OpenCLIP's tensor names" in error_of(folder)


def test_lists_of_misfits_are_short(folder: Path, state: State) -> None:
    save(folder, {f"other.{name}": tensor for name, tensor in state.items()})
    lines = error_of(folder).splitlines()
    assert len(lines) == 13
    assert [line.strip() for line in lines if "more" in line] == [
        f"... and {len(state) - 5} more",
        f"... and {len(state) - 5} more",
    ]


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "a/../../x"])
def test_an_index_that_leads_outside_its_folder_is_refused(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embeddings.class_embedding": name}}))
    assert error_of(folder).startswith(f"{index} names {name!r}; allowed: files in its own folder")


def test_an_index_may_name_links_as_the_cache_of_the_hub_has_them(
    folder: Path, state: State, tmp_path_factory: pytest.TempPathFactory
) -> None:
    blob = tmp_path_factory.mktemp("blobs") / "0123"
    (folder / "model.safetensors").rename(blob)
    (folder / "part.safetensors").symlink_to(blob)
    weight_map = dict.fromkeys(state, "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert load(folder).keys() == state.keys()


class Command:
    """Runs a command when an unsafe reader unpickles it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_a_pickle_with_code_is_refused_and_not_run(folder: Path, state: State) -> None:
    (folder / "model.safetensors").unlink()
    trace = folder / "was-run"
    torch.save({**state, "x": Command(f"touch {trace}")}, folder / "pytorch_model.bin")
    message = error_of(folder)
    assert not trace.exists()
    assert "it is a pickle that refers to posix.system, and loading it could run code" in message
    assert "weights_only" not in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"not a pickle", b"\x80\x04]\x94.", b"PK\x03\x04broken"])
def test_no_message_repeats_the_advice_to_load_unsafely(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    message = error_of(folder)
    assert f"{folder / 'pytorch_model.bin'} cannot be read as weights: " in message
    assert "weights_only" not in message
    assert "\n" not in message
