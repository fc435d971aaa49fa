import pytest
import torch

from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.errors import UserError
from img2prompt.model import precision
from img2prompt.model.precision import compute_dtype, shorten_frozen
from img2prompt.model.prompt_model import PromptModel, build_prompt_model
from img2prompt.model.towers.clip import ClipTower

CPU = torch.device("cpu")
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize(
    ("asked", "hardware", "expected"),
    [
        ("fp32", True, torch.float32),
        ("bf16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
    ],
)
def test_compute_dtype(
    asked: str, hardware: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: hardware)
    assert compute_dtype(asked, CPU) == expected


def test_float16_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="'fp16'; allowed without a GPU: auto, fp32 or bf16"):
        compute_dtype("fp16", CPU)
    assert compute_dtype("fp16", torch.device("cuda")) == torch.float16


def outcome(model: PromptModel) -> list[torch.Tensor]:
    """Output and gradients under autocast."""
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=draw)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(pixels)
    predicted.float().square().sum().backward()
    return [predicted, *(t.grad for t in model.parameters() if t.grad is not None)]


def test_frozen_matrices_in_16_bits_change_no_number() -> None:
    plan = PlanConfig(lora_rate=0.5, nfz_rate=0.25, lora_rank=4)
    model = build_prompt_model(ClipTower.fresh(TOWER, 0), 32, plan, HeadConfig(width=8), 0)
    expected = outcome(model)
    model.zero_grad()
    learning = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    shorten_frozen(model, torch.bfloat16)
    found = outcome(model)
    assert len(found) == len(expected) == 1 + len(learning)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    long = {name for name, tensor in model.named_parameters() if tensor.dtype == torch.float32}
    assert learning < long
    assert "tower.vision.encoder.layers.0.mlp.fc1.weight" not in long
