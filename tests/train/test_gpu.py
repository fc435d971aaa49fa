"""Results on a GPU, whose device and precision differ. Needs one CUDA device; no Ray."""

import numpy as np
import pytest
import torch
from tiny import MemoryRows, config_of, run_loop

from img2prompt.model.precision import compute_dtype
from img2prompt.model.text import PromptEncoder
from img2prompt.model.towers.build import open_tower

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.fixture
def config(tiny_tower: str):
    return config_of(tiny_tower)


def test_features_equal_those_of_the_cpu(config) -> None:
    tower = open_tower(config.tower)
    pixels = torch.from_numpy(MemoryRows(16, seed=0).pixels)
    with torch.inference_mode():
        expected = tower(pixels)
        tower.to(CUDA)
        exact = tower(pixels.to(CUDA)).cpu()
        with torch.autocast("cuda", compute_dtype("auto", CUDA)):
            half = tower(pixels.to(CUDA)).float().cpu()
    torch.testing.assert_close(exact, expected, atol=1e-4, rtol=1e-4)
    assert torch.cosine_similarity(half, expected).min() > 0.999


def test_targets_equal_those_of_the_cpu() -> None:
    prompts = ["a red cat", "two blue dogs in the snow, oil on canvas", "portrait " * 90]
    expected = PromptEncoder(device="cpu").encode(prompts)
    np.testing.assert_allclose(PromptEncoder(device="cuda").encode(prompts), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "deepspeed"])
def test_training_in_bf16_learns(config, kind, tmp_path, monkeypatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        changes = {"engine.kind": kind, "engine.precision": "auto", "optim.epochs": 6}
        train, val = MemoryRows(96, seed=0), MemoryRows(32, seed=1)
        history = run_loop(config.replace(changes), train, val, device=CUDA).reported
        assert history[-1]["val_cosine"] > history[0]["val_cosine"] + 0.05
        assert history[-1]["train_loss"] < history[0]["train_loss"]
    finally:
        torch.distributed.destroy_process_group()
