import pytest
import torch

from img2prompt.errors import UserError
from img2prompt.model import precision
from img2prompt.model.precision import compute_dtype

CPU = torch.device("cpu")


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
