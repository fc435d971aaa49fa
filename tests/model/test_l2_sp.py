import torch

from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.model.l2_sp import PretrainedPull, pretrained_tensors
from img2prompt.model.prompt_model import build_prompt_model
from img2prompt.model.towers.clip import ClipTower

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
PLAN = PlanConfig(lora_rate=0.34, nfz_rate=0.34, lora_rank=2)


def test_the_pull_is_half_the_squared_distance_of_the_trained_layers() -> None:
    model = build_prompt_model(ClipTower.fresh(VISION, 0), 16, PLAN, HeadConfig(), seed=0)
    pull = PretrainedPull(pretrained_tensors(model))
    assert pull(model).item() == 0
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    expected, pulled = 0.0, []
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad:
                tensor += torch.randn_like(tensor)
                if name.startswith("tower.") and "lora_" not in name:
                    moved = (tensor.double() - before[name].double()).square().sum().item()
                    expected, pulled = expected + moved / 2, [*pulled, name]
    assert len(pulled) > 10
    loss = pull(model)
    assert abs(loss.item() / expected - 1) < 1e-5
    loss.backward()
    for name, tensor in model.named_parameters():
        if name in pulled:
            torch.testing.assert_close(tensor.grad, tensor.detach() - before[name])
        else:
            assert tensor.grad is None or not tensor.grad.any()
