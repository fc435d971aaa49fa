import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import run_workers
from torch import Tensor, nn

from img2prompt.config.train import HeadConfig
from img2prompt.model.heads.regression import GlobalBatchNorm, build_head

WORKERS, ROWS, WIDTH, EMBEDDING = 2, 12, 6, 384
SHARES = {"equal shares": (6, 6), "unequal shares": (4, 8), "a share of one row": (11, 1)}


def batches() -> list[tuple[Tensor, Tensor]]:
    """Inputs (ROWS, WIDTH) of two steps, with a factor on each row's outputs as the loss."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.5, 3.0, ROWS)[:, None]  # the workers' shares are not alike
    return [
        (
            torch.randn(ROWS, WIDTH, generator=generator) * scale + scale,
            torch.randn(ROWS, EMBEDDING, generator=generator),
        )
        for _ in range(2)
    ]


def wide_head() -> nn.Module:
    torch.manual_seed(1)
    head = build_head(WIDTH, HeadConfig(width=8))
    norm = head[1]
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    return head


def two_steps(head: nn.Module, mine: slice = slice(None)) -> dict[str, Any]:
    """What a worker sees of two forward and backward passes: its rows, and shared gradients."""
    shared = dist.is_initialized()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    seen: dict[str, Any] = {"outputs": [], "inputs": [], "gradients": []}
    for inputs, factors in batches():
        own = inputs[mine].clone().requires_grad_()
        outputs = head.train()(own)
        ((outputs * factors[mine]).sum() / (ROWS * EMBEDDING)).backward()
        for tensor in head.parameters():
            assert tensor.grad is not None
            dist.all_reduce(tensor.grad) if shared else None
        optimizer.step()
        assert own.grad is not None
        seen["outputs"].append(outputs.detach())
        seen["inputs"].append(own.grad)
        seen["gradients"].append([t.grad.clone() for t in head.parameters() if t.grad is not None])
        optimizer.zero_grad()
    seen["state"] = copy.deepcopy(head.state_dict())
    seen["evaluated"] = head.eval()(batches()[0][0][mine]).detach()
    seen["halved"] = halved(GlobalBatchNorm(WIDTH), mine)
    return seen


def halved(norm: nn.Module, mine: slice = slice(None)) -> list[Tensor]:
    """Output, gradient and statistics of bfloat16 rows far from zero, under autocast."""
    inputs = (batches()[0][0][mine] + 100).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = norm(inputs)
    (output * batches()[0][1][mine, :WIDTH]).sum().backward()
    assert inputs.grad is not None
    statistics = [tensor for name, tensor in norm.named_buffers() if name.startswith("running")]
    return [output.detach(), inputs.grad, *statistics]


def worker(rank: int, folder: str) -> None:
    for name, shares in SHARES.items():
        mine = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
        torch.save(two_steps(wide_head(), mine), Path(folder) / f"{name}-{rank}.pt")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes saw."""
    folder = tmp_path_factory.mktemp("gloo")
    run_workers(worker, WORKERS, folder, str(folder))
    return folder


@pytest.fixture(scope="module", params=SHARES)
def shared(request: pytest.FixtureRequest, seen: Path) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    return [torch.load(seen / f"{request.param}-{rank}.pt") for rank in range(WORKERS)]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The same with torch's own BatchNorm on the whole batch in one process."""
    head = wide_head()
    norm = nn.BatchNorm1d(8)
    norm.load_state_dict(head[1].state_dict())
    head[1] = norm
    return two_steps(head)


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_two_workers_give_the_outputs_of_the_whole_batch(shared, whole) -> None:
    for step in range(2):
        close(torch.cat([seen["outputs"][step] for seen in shared]), whole["outputs"][step])


def test_two_workers_give_the_gradients_of_the_whole_batch(shared, whole) -> None:
    for step in range(2):
        assert whole["inputs"][step].abs().max() > 1e-4
        close(torch.cat([seen["inputs"][step] for seen in shared]), whole["inputs"][step])
        for seen in shared:
            close(seen["gradients"][step], whole["gradients"][step])


def test_two_workers_end_with_the_statistics_of_the_whole_batch(shared, whole) -> None:
    assert whole["state"]["1.num_batches_tracked"] == 2
    assert (whole["state"]["1.running_var"] - 1).abs().max() > 0.01
    for seen in shared:
        assert seen["state"].keys() == whole["state"].keys()
        close(seen["state"], whole["state"])
        for name in ("1.running_mean", "1.running_var"):
            assert torch.equal(seen["state"][name], shared[0]["state"][name])


def test_shared_statistics_are_float32_under_bfloat16(shared) -> None:
    """Of rows around 100, where bfloat16 has steps of a half."""
    inputs, factors = batches()[0]
    exact = (inputs + 100).bfloat16().float().requires_grad_()
    norm = nn.BatchNorm1d(WIDTH)
    output = norm(exact)
    (output * factors[:, :WIDTH]).sum().backward()
    outputs, gradients, *statistics = zip(*(seen["halved"] for seen in shared), strict=True)
    assert outputs[0].dtype == torch.float32
    close(torch.cat(outputs), output.detach())
    torch.testing.assert_close(torch.cat(gradients).float(), exact.grad, atol=1e-2, rtol=1e-2)
    for found, expected in zip(statistics, (norm.running_mean, norm.running_var), strict=True):
        assert {tensor.dtype for tensor in found} == {torch.float32}
        for tensor in found:
            close(tensor, expected)


def test_evaluation_uses_the_running_statistics(shared, whole) -> None:
    close(torch.cat([seen["evaluated"] for seen in shared]), whole["evaluated"])


def test_one_process_is_torchs_batch_norm(whole) -> None:
    alone = two_steps(wide_head())
    assert isinstance(wide_head()[1], GlobalBatchNorm)
    for found, expected in zip(alone["outputs"], whole["outputs"], strict=True):
        assert torch.equal(found, expected)
    close(alone["state"], whole["state"])


def test_a_head_is_linear_or_wide() -> None:
    linear = build_head(WIDTH, HeadConfig())
    assert isinstance(linear, nn.Linear)
    inputs = torch.randn(5, WIDTH)
    assert linear(inputs).shape == (5, EMBEDDING)
    torch.testing.assert_close(linear(inputs), inputs @ linear.weight.T + linear.bias)
    wide = build_head(WIDTH, HeadConfig(width=10))
    assert [type(part).__name__ for part in wide] == ["Linear", "GlobalBatchNorm", "ReLU", "Linear"]
    assert wide(inputs).shape == (5, EMBEDDING)
    shapes = [tuple(tensor.shape) for tensor in wide.parameters()]
    assert shapes == [(10, WIDTH), (10,), (10,), (EMBEDDING, 10), (EMBEDDING,)]


def test_statistics_are_float32_under_bfloat16() -> None:
    norm = GlobalBatchNorm(4)
    inputs = 100 + torch.randn(64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, nn.BatchNorm1d(4)(inputs))
    halved = norm(inputs.bfloat16())
    torch.testing.assert_close(halved, nn.BatchNorm1d(4)(inputs.bfloat16().float()))


@pytest.mark.parametrize("width", [0, 10])
def test_dropout_comes_before_the_last_layer(width: int) -> None:
    """And leaves the names of the tensors alone, so that heads go on with another dropout."""
    torch.manual_seed(3)
    head = build_head(WIDTH, HeadConfig(width=width, dropout=0.25))
    plain = build_head(WIDTH, HeadConfig(width=width))
    assert not any("ropout" in repr(part) for part in plain.modules())
    plain.load_state_dict(head.state_dict())
    inputs = batches()[0][0]
    body, last = (plain[:-1], plain[-1]) if width else (nn.Identity(), plain)
    torch.manual_seed(4)
    found = head.train()(inputs)
    hidden = body.train()(inputs)
    torch.manual_seed(4)
    dropped = nn.functional.dropout(hidden, 0.25)
    share = ((dropped == 0) & (hidden != 0)).sum() / (hidden != 0).sum()
    assert 0.1 < share < 0.45
    close(found, dropped @ last.weight.T + last.bias)
    plain.load_state_dict(head.state_dict())
    close(head.eval()(inputs), plain.eval()(inputs))
