import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import MemoryRows, assert_close, config_of, model_of

from img2prompt.config import OptimConfig, TrainConfig
from img2prompt.errors import UserError
from img2prompt.model.predictor import learned_state
from img2prompt.stages import engine as engines
from img2prompt.stages.engine import Engine, PlainEngine, build_engine, check_batch, compute_dtype
from img2prompt.stages.worker import History, Place, fit, total_steps

TRAIN, VAL = MemoryRows(53, seed=1), MemoryRows(21, seed=2)
CPU = torch.device("cpu")
ALONE = Place()
WORKERS = 2
ZERO_STAGES = (0, 1, 2)
WIDTHS = (0, 24)


def trained(
    config: TrainConfig, folder: Path, place: Place = ALONE, stop: int = 99
) -> dict[str, Any]:
    """Train, going on from `folder` if a checkpoint is there, and save one after epoch `stop`."""
    model = model_of(config)
    engine = build_engine(model, config, total_steps(config, len(TRAIN)), CPU)
    history: History = []
    kept = folder / f"history-{place.rank}"
    if kept.exists():
        engine.load(folder)
        history = torch.load(kept)

    def report(now: History) -> None:
        history[:] = now
        if len(now) == stop:
            engine.save(folder)
            torch.save(now, kept)
            raise StopIteration

    try:
        fit(config, engine, TRAIN, VAL, place, history, report)
    except StopIteration:
        dist.barrier() if place.workers > 1 else None
    return {"history": history, "state": {n: t.clone() for n, t in learned_state(model).items()}}


@pytest.fixture(scope="module", params=WIDTHS, ids=["linear", "wide"])
def width(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def alone(tiny_tower: str, width: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run with torch alone in one process."""
    return trained(config_of(tiny_tower, width=width), tmp_path_factory.mktemp("alone"))


def assert_same_run(found: dict[str, Any], expected: dict[str, Any]) -> None:
    curve = [(row["train_loss"], row["val_cosine"]) for row in expected["history"]]
    assert len(curve) == 3
    assert curve[-1][0] < curve[0][0] - 0.1
    assert [(row["train_loss"], row["val_cosine"]) for row in found["history"]] == [
        pytest.approx(point, abs=1e-4) for point in curve
    ]
    assert_close(found["state"], expected["state"], atol=1e-4)


def test_plain_torch_goes_on_where_it_was_saved(
    tiny_tower: str, width: int, alone: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of(tiny_tower, width=width)
    half = trained(config, tmp_path, stop=1)
    assert len(half["history"]) == 1
    whole = trained(config, tmp_path)
    assert [row["epoch"] for row in whole["history"]] == [1, 2, 3]
    assert whole["history"][0] == half["history"][0]
    for name, tensor in alone["state"].items():
        assert torch.equal(whole["state"][name], tensor), name


def worker(rank: int, folder: str, tower: str) -> None:
    """All ZeRO stages and heads in two processes, each run at once and in two halves."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORKERS
    )
    place = Place(rank, WORKERS)
    for stage, width in product(ZERO_STAGES, WIDTHS):
        base = config_of(tower, width=width)
        changes = {
            "engine.kind": "deepspeed",
            "engine.zero_stage": stage,
            "engine.workers": WORKERS,
        }
        config = base.replace(changes)
        saved = Path(folder) / f"saved-{stage}-{width}"
        saved.mkdir(exist_ok=True)
        runs = [trained(config, Path(folder), place), trained(config, saved, place, stop=2)]
        runs.append(trained(config, saved, place))
        torch.save(runs, Path(folder) / f"{stage}-{width}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tiny_tower: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(worker, args=(str(folder), tiny_tower), nprocs=WORKERS)
    return folder


@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_deepspeed_on_two_workers_is_plain_torch_on_the_whole_batch(
    shared: Path, alone: dict[str, Any], width: int, stage: int
) -> None:
    for rank in range(WORKERS):
        at_once, _, _ = torch.load(shared / f"{stage}-{width}-{rank}.pt")
        assert_same_run(at_once, alone)


@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_deepspeed_goes_on_where_it_was_saved(shared: Path, width: int, stage: int) -> None:
    for rank in range(WORKERS):
        at_once, half, whole = torch.load(shared / f"{stage}-{width}-{rank}.pt")
        assert len(half["history"]) == 2
        assert whole["history"][:2] == half["history"]
        assert_same_run(whole, at_once)


def test_a_checkpoint_holds_no_frozen_weights(
    shared: Path, alone: dict[str, Any], width: int
) -> None:
    for stage in ZERO_STAGES:
        path = shared / f"saved-{stage}-{width}" / "engine" / "mp_rank_00_model_states.pt"
        assert torch.load(path, weights_only=False)["module"].keys() == alone["state"].keys()


def test_workers_end_with_the_same_weights(shared: Path, width: int) -> None:
    for stage in ZERO_STAGES:
        first, second = (torch.load(shared / f"{stage}-{width}-{rank}.pt")[0] for rank in (0, 1))
        assert [row["val_cosine"] for row in first["history"]] == [
            row["val_cosine"] for row in second["history"]
        ]
        for name, tensor in first["state"].items():
            assert torch.equal(second["state"][name], tensor), name


def test_a_checkpoint_of_another_model_is_refused(tiny_tower: str, tmp_path: Path) -> None:
    linear, wide = config_of(tiny_tower), config_of(tiny_tower, width=24)
    engine = build_engine(model_of(linear), linear, 9, CPU)
    engine.save(tmp_path)
    with pytest.raises(UserError, match="does not fit this config"):
        build_engine(model_of(wide), wide, 9, CPU).load(tmp_path)


def test_bfloat16_keeps_float32_weights(tiny_tower: str) -> None:
    exact, half = config_of(tiny_tower), config_of(tiny_tower, engine__precision="bf16")
    inputs = torch.from_numpy(TRAIN.pixels[:8])
    made: list[Engine] = [PlainEngine(model_of(c), c, 9, CPU) for c in (exact, half)]
    outputs = [engine.forward(inputs) for engine in made]
    apart = (outputs[0] - outputs[1].float()).abs().max()
    assert 0 < apart < 0.05 * outputs[0].abs().max()
    made[1].backward(outputs[1].float().square().mean())
    made[1].step()
    assert all(tensor.dtype == torch.float32 for tensor in made[1].module.parameters())


def test_the_gradient_norm_is_clipped(tiny_tower: str) -> None:
    config = config_of(tiny_tower)
    engine = PlainEngine(model_of(config), config, 9, CPU)
    engine.backward(engine.forward(torch.from_numpy(TRAIN.pixels[:8])).square().sum())
    learning = [t for t in engine.module.parameters() if t.requires_grad]
    kept = {id(t): t.grad for t in learning}
    norm = torch.stack([g.square().sum() for g in kept.values() if g is not None]).sum().sqrt()
    assert norm > 1
    engine.step()
    clipped = torch.stack([g.square().sum() for g in kept.values() if g is not None]).sum().sqrt()
    assert clipped.item() == pytest.approx(config.optim.clip_norm, rel=1e-4)
    assert all(tensor.grad is None for tensor in learning)


@pytest.mark.parametrize(
    ("precision", "hardware", "expected"),
    [
        ("fp32", True, torch.float32),
        ("bf16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
    ],
)
def test_compute_dtype(
    precision: str, hardware: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_cpu_has_bf16", lambda: hardware)
    assert compute_dtype(precision, CPU) == expected


def test_workers_must_divide_the_batch() -> None:
    check_batch(OptimConfig(batch_size=12), 4)
    with pytest.raises(UserError, match=r"optim\.batch_size is 12; allowed with 5 workers: a mult"):
        check_batch(OptimConfig(batch_size=12), 5)
