"""Checkpoints of pipelines: found, identified and loaded strictly."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from img2prompt.config.generate import GenerateConfig
from img2prompt.errors import UserError
from img2prompt.generate.checkpoint import (
    INDEX,
    check_installed,
    checkpoint_digest,
    find_checkpoint,
    load_models,
)

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(sd15: str, tmp_path: Path) -> Path:
    """A copy of the pipeline that a test may damage."""
    return Path(shutil.copytree(sd15, tmp_path / "copy"))


def load(folder: Path, variant: str = "") -> dict[str, torch.nn.Module]:
    return load_models(folder, variant, torch.float32)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("", "weights is empty: name a diffusers pipeline with --weights"),
        ("model.safetensors", r"a single file; allowed: a diffusers folder\. Convert"),
        ("/absent", r"/absent/model_index\.json cannot be read"),
        ("nobody/nothing", "not in the local Hugging Face cache .* fetch it from the hub with"),
    ],
)
def test_absent_checkpoints_are_refused(
    config: GenerateConfig, monkeypatch: pytest.MonkeyPatch, weights: str, message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        find_checkpoint(config.replace({"weights": weights}))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setattr("img2prompt.generate.checkpoint.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'img2prompt\[generate\]'"):
        check_installed()


def test_the_digest_follows_the_files_that_are_read(folder: Path, sd15: str) -> None:
    own = checkpoint_digest(folder, "")
    assert own == checkpoint_digest(Path(sd15), "")
    (folder / "README.md").write_text("not read")
    shutil.copy(folder / UNET, folder / "unet/diffusion_pytorch_model.bin")
    shutil.copy(folder / UNET, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert checkpoint_digest(folder, "") == own
    assert checkpoint_digest(folder, "fp16") != own
    tensors = load_file(folder / UNET)
    tensors["conv_in.weight"][0, 0, 0, 0] += 1
    save_file(tensors, folder / UNET, {"format": "pt"})
    changed = checkpoint_digest(folder, "")
    assert changed != own
    scheduler = folder / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("epsilon", "v_prediction"))
    assert checkpoint_digest(folder, "") not in (own, changed)


def test_a_variant_is_loaded_where_there_is_one(folder: Path) -> None:
    tensors = {name: tensor * 0 for name, tensor in load_file(folder / UNET).items()}
    save_file(tensors, folder / "unet/diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    assert load(folder)["unet"].state_dict()["conv_in.weight"].any()
    models = load(folder, "fp16")
    assert not models["unet"].state_dict()["conv_in.weight"].any()
    assert set(models) == {"text_encoder", "unet", "vae"}


@pytest.mark.parametrize("file", [UNET, TEXT])
def test_missing_tensors_are_refused_and_not_drawn_at_random(folder: Path, file: str) -> None:
    tensors = load_file(folder / file)
    removed = sorted(tensors)[:7]
    for name in removed:
        del tensors[name]
    save_file(tensors, folder / file, {"format": "pt"})
    with pytest.raises(UserError, match=r"missing: .* and 2 more") as error:
        load(folder)
    assert str(folder / file.partition("/")[0]) in str(error.value)
    save_file({f"module.{n}": t for n, t in tensors.items()}, folder / file, {"format": "pt"})
    with pytest.raises(UserError, match=r"missing: [^\n]* more\n  unknown: module\."):
        load(folder)


def test_files_that_are_no_weights_are_refused(folder: Path) -> None:
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="is a Git LFS pointer, not weights: run `git lfs pull`"):
        load(folder)
    (folder / UNET).write_bytes(b"half a file")
    with pytest.raises(UserError, match="unet cannot be loaded as UNet2DConditionModel"):
        load(folder)


def test_pipelines_with_code_of_their_own_are_not_run(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"unet": ["my_module", "MyUNet"]}))
    with pytest.raises(UserError, match=r"names my_module\.MyUNet, which the installed packages"):
        load(folder)
    (folder / INDEX).write_text("[]")
    with pytest.raises(UserError, match="give --weights the folder of a diffusers pipeline"):
        load(folder)
