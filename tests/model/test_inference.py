import torch
from torch import nn

from img2prompt.model.inference import prepare_for_inference


def test_the_tower_gets_the_compute_type_and_the_head_stays_in_float32() -> None:
    model = nn.ModuleDict({"tower": nn.Linear(2, 2), "head": nn.Linear(2, 2)}).train()
    prepared = prepare_for_inference(model, model["tower"], torch.device("cpu"), "bf16")
    assert prepared is model
    assert not model.training
    assert model["tower"].weight.dtype == torch.bfloat16
    assert model["head"].weight.dtype == torch.float32
