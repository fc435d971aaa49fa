"""An exported run is loaded by transformers and torch alone, and predicts the same."""

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import FINETUNE, MemoryRows, config_of, model_of
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from img2prompt.artifact import Artifact
from img2prompt.config.predict import ExportConfig
from img2prompt.config.prepare import ShardConfig
from img2prompt.config.train import PlanConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import WEIGHTS, learned_state, load_prompt_model
from img2prompt.model.towers.siglip import SiglipTower
from img2prompt.predict import export
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.trained import TrainedRun

PLANS = {
    "LoRA": FINETUNE,
    "trained layers": PlanConfig(nfz_rate=0.5),
    "probe": PlanConfig(),
    "published LoRA": PlanConfig(lora_rate=1.0, lora_init="published", lora_scale=0.5),
}


def shards_of(folder: Path, size: int = 32) -> Artifact:
    config = ShardConfig(size=size, rows_per_shard=8, rows_per_group=8)
    return Draft.open(str(folder / f"shards-{size}"), "shards", config, {}).publish()


def run_of(folder: Path, tower: str, plan: PlanConfig, width: int) -> Artifact:
    """A finished run whose learned tensors are all moved from their start."""
    config = config_of(tower, plan, width)
    model = model_of(config)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: t + 0.05 * torch.rand(t.shape, generator=generator) if t.is_floating_point() else t
        for name, t in learned_state(model).items()
    }
    full = model_of(config.replace({"plan": FINETUNE.to_dict()})).tower
    assert full is not None
    inputs = {"tower": full.base_fingerprint, "shards": shards_of(folder).fingerprint}
    draft = Draft.open(str(folder / "run"), "train", config, inputs)
    draft.write_bytes(WEIGHTS, safetensors.torch.save(state))
    return draft.publish()


def plain_head(width: int) -> nn.Module:
    if width == 0:
        return nn.Linear(32, 384)
    return nn.Sequential(
        nn.Linear(32, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 384)
    )


@pytest.mark.parametrize("width", [0, 8])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@torch.no_grad()
def test_an_export_predicts_the_same_without_this_package(
    plan: PlanConfig, width: int, tiny_tower: str, tmp_path: Path
) -> None:
    check_export(run_of(tmp_path, tiny_tower, plan, width), width, tmp_path)


@torch.no_grad()
def test_an_export_of_a_siglip_tower_predicts_the_same(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    fields = {**sizes, "num_hidden_layers": 4, "num_attention_heads": 2}
    tower = SiglipTower.fresh(fields, seed=0)
    tower.save(tmp_path / "siglip", torch.float32)
    check_export(run_of(tmp_path, str(tmp_path / "siglip"), FINETUNE, 0), 0, tmp_path)


def check_export(run: Artifact, width: int, tmp_path: Path) -> None:
    """Export a run and compare its predictions with those of transformers and torch alone."""
    made = export.run(
        ExportConfig(), TrainedRun(run, name="lora"), shards_of(tmp_path), str(tmp_path / "export")
    )
    pixels = MemoryRows(4, seed=0).pixels
    expected = load_prompt_model(run)(torch.from_numpy(pixels))

    folder = tmp_path / "export"
    tower, report = AutoModel.from_pretrained(folder / "tower", output_loading_info=True)
    assert not any(report.values())
    head = plain_head(width)
    head.load_state_dict(safetensors.torch.load_file(folder / export.HEAD))
    processor = AutoImageProcessor.from_pretrained(folder / "tower")
    pictures = processor(list(pixels), return_tensors="pt")
    exported = head.eval()(tower.eval()(**pictures).pooler_output)
    torch.testing.assert_close(exported, expected, atol=1e-5, rtol=0)
    assert expected.std(dim=0).max() > 1e-3
    total = sum(t.numel() for part in (tower, head) for t in part.parameters())
    assert made.counts == {"parameters": total}


def test_an_export_is_a_folder_with_a_manifest(tiny_tower: str, tmp_path: Path) -> None:
    run, shards = run_of(tmp_path, tiny_tower, FINETUNE, 0), shards_of(tmp_path)
    made = export.run(
        ExportConfig(), TrainedRun(run, name="lora"), shards, str(tmp_path / "export")
    )
    assert made.names() == [
        "head.safetensors",
        "tower/config.json",
        "tower/model.safetensors",
        "tower/preprocessor_config.json",
    ]
    assert made.inputs == {"run": run.fingerprint}
    written = tmp_path / "export" / "tower" / "model.safetensors"
    before = written.stat().st_mtime_ns
    assert (
        export.run(ExportConfig(), TrainedRun(run, name="lora"), shards, str(tmp_path / "export"))
        == made
    )
    assert written.stat().st_mtime_ns == before
    fields = json.loads((written.parent / "preprocessor_config.json").read_text())
    assert fields["size"] == {"shortest_edge": 32}


def test_other_shards_than_the_runs_are_refused(tiny_tower: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny_tower, FINETUNE, 0)
    other = shards_of(tmp_path, size=48)
    with pytest.raises(UserError, match="was made from other shards"):
        export.run(ExportConfig(), TrainedRun(run, name="lora"), other, str(tmp_path / "export"))
    assert not (tmp_path / "export").exists()


def test_a_predictor_that_is_not_a_trained_run_is_refused(tmp_path: Path) -> None:
    shards = shards_of(tmp_path)
    with pytest.raises(UserError, match=r"'mean' cannot be exported: .*allowed: a training run"):
        export.run(ExportConfig(), MeanVector(shards, name="mean"), shards, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_run_on_another_tower_is_refused(tiny_tower: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny_tower, FINETUNE, 0)
    foreign = dataclasses.replace(run, inputs={**run.inputs, "tower": "0" * 16})
    with pytest.raises(UserError, match="was trained on a tower with fingerprint 0000"):
        export.run(
            ExportConfig(),
            TrainedRun(foreign, name="lora"),
            shards_of(tmp_path),
            str(tmp_path / "export"),
        )
