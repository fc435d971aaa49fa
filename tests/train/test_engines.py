import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gloo import run_workers
from tiny import CPU, MemoryRows, Trained, assert_close, average_of, config_of, model_of, run_loop

from img2prompt.config.train import EngineConfig, OptimConfig, PlanConfig, TrainConfig
from img2prompt.data.order import worker_share
from img2prompt.errors import UserError
from img2prompt.model.towers.clip import ClipTower
from img2prompt.train.batches import WorkerRank, check_batch, micro_batches, rows_at_once
from img2prompt.train.checkpoint import Checkpoint, History, Position
from img2prompt.train.engines.base import MOMENTS, Engine, trainable
from img2prompt.train.engines.build import build_engine, compiles
from img2prompt.train.engines.plain import PlainEngine
from img2prompt.train.loop import Loop
from img2prompt.train.optim import rate_factor
from img2prompt.train.recipe import Recipe

TRAIN, VAL = MemoryRows(53, seed=3), MemoryRows(21, seed=2)
WORKERS = 2
ZERO_STAGES = (0, 1, 2, 3)
WIDTHS = (0, 24)
DECAY = 0.8
MIDDLE = 2
"""Number of the checkpoint in the middle of the second epoch."""


@pytest.fixture(scope="module", params=WIDTHS, ids=["linear", "wide"])
def width(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def alone(tiny_tower: str, width: int) -> Trained:
    """The run with torch alone in one process, saved inside and after each epoch."""
    changes = {"engine__save_every": 2, "recipe__ema_decay": DECAY}
    return run_loop(config_of(tiny_tower, width=width, **changes), TRAIN, VAL)


def curve(history: History) -> list[tuple[float, float]]:
    return [(row["train_loss"], row["val_cosine"]) for row in history]


def assert_same_run(found: list[Checkpoint], expected: list[Checkpoint], atol: float) -> None:
    """Both end after three epochs with the same losses and tensors."""
    ours, theirs = found[-1].position, expected[-1].position
    assert (ours.epoch, ours.step) == (theirs.epoch, theirs.step) == (3, 0)
    assert curve(theirs.history)[-1][0] < curve(theirs.history)[0][0] - 0.1
    assert curve(ours.history) == [pytest.approx(p, abs=atol) for p in curve(theirs.history)]
    assert_close(found[-1].engine.model, expected[-1].engine.model, atol=atol)


def changed(tower: str, stage: int, width: int, workers: int) -> TrainConfig:
    """The run of `alone` by DeepSpeed; ZeRO 3 keeps no average."""
    return config_of(
        tower,
        width=width,
        engine__kind="deepspeed",
        engine__zero_stage=stage,
        engine__workers=workers,
        engine__save_every=2,
        recipe__ema_decay=DECAY if stage < 3 else 0.0,
    )


def worker(rank: int, workers: int, folder: str, tower: str) -> None:
    """Train with all ZeRO stages and heads: two workers from scratch and from checkpoints, and one
    worker from theirs.
    """
    os.environ["LOCAL_RANK"] = str(rank)
    for stage, width in product(ZERO_STAGES, WIDTHS):
        config, own = changed(tower, stage, width, workers), WorkerRank(rank, workers)
        if workers > 1:
            at_once = run_loop(config, TRAIN, VAL, own).saved
            starts = {
                "own": at_once[MIDDLE],
                "plain": torch.load(f"{folder}/plain-{width}.pt", weights_only=False),
            }
            runs = {"at once": at_once}
            if width == 0:
                in_parts = config.replace({"engine.micro_batch": 2, "engine.recompute": True})
                runs["in parts"] = run_loop(in_parts, TRAIN, VAL, own).saved
        else:
            two = made_by(Path(folder), stage, width, WORKERS, 0)
            starts, runs = {"two": two["at once"][MIDDLE]}, {}
        for name, start in starts.items():
            runs[name] = run_loop(config, TRAIN, VAL, own, start).saved
        torch.save(runs, f"{folder}/{stage}-{width}-{workers}-{rank}.pt")


@pytest.fixture(scope="module")
def spawned(tiny_tower: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gloo")
    for width in WIDTHS:
        changes = {"engine__save_every": 2, "recipe__ema_decay": DECAY}
        config = config_of(tiny_tower, width=width, **changes)
        torch.save(run_loop(config, TRAIN, VAL).saved[MIDDLE], folder / f"plain-{width}.pt")
    for workers in (WORKERS, 1):
        meet = f"meet-{workers}"
        run_workers(worker, workers, folder, workers, str(folder), tiny_tower, name=meet)
    return folder


class Gradients(PlainEngine):
    """Averages the gradients over all workers, as DeepSpeed does, and makes no step."""

    def step(self) -> None:
        for _, tensor in trainable(self.module):
            if dist.is_initialized():
                dist.all_reduce(tensor.grad)
                tensor.grad /= dist.get_world_size()


def gradients(
    tower: str, width: int, micro_batch: int, worker: WorkerRank
) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss of 16 rows."""
    config = config_of(tower, width=width, engine__micro_batch=micro_batch)
    engine = Gradients(model_of(config), config, 9, CPU)
    engine._parts = micro_batches(config, worker.workers)
    loop = Loop(
        config=config,
        engine=engine,
        recipe=Recipe(),
        train=TRAIN,
        val=VAL,
        worker=worker,
        save=lambda _: None,
    )
    engine.module.train()
    loop._step(Position(), TRAIN.fetch(worker_share(np.arange(16), worker.rank, worker.workers)))
    return {name: tensor.grad for name, tensor in trainable(engine.module)}


UNEVEN = ((0, 0), (0, 2), (24, 0))
"""Head width and micro-batch."""


VARIANTS = {
    "LoRA": {},
    "DoRA": {"plan.lora_dora": True},
    "PiSSA": {"plan.lora_init": "pissa", "plan.lora_targets": "both"},
    "losses of global batches, and rates and a pull by layer": {
        "recipe.info_nce_weight": 0.2,
        "recipe.negative_weight": 0.2,
        "recipe.negative_margin": 0.0,
        "recipe.mse_weight": 0.1,
        "recipe.l2_sp": 0.01,
        "optim.layer_decay": 0.5,
    },
}


def uneven(rank: int, workers: int, folder: str, tower: str) -> None:
    """16 rows on three workers: five, five and six of them."""
    os.environ["LOCAL_RANK"] = str(rank)
    found = [gradients(tower, *case, WorkerRank(rank, workers)) for case in UNEVEN]
    config, own = changed(tower, 1, 0, workers), WorkerRank(rank, workers)
    runs = {n: run_loop(config.replace(VARIANTS[n]), TRAIN, VAL, own).saved for n in VARIANTS}
    torch.save((found, runs), f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def three_workers(tiny_tower: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gradients, and the runs of VARIANTS, of the second of three workers."""
    folder = tmp_path_factory.mktemp("three")
    run_workers(uneven, 3, folder, 3, str(folder), tiny_tower)
    return torch.load(folder / "1.pt", weights_only=False)


@pytest.mark.parametrize("variant", list(VARIANTS)[1:])
def test_variants_are_those_of_plain_torch(
    three_workers: Any, tiny_tower: str, variant: str
) -> None:
    run = three_workers[1][variant]
    config = config_of(tiny_tower, engine__save_every=2).replace(VARIANTS[variant])
    expected = run_loop(config, TRAIN, VAL).saved
    assert_same_run(run, expected, atol=1e-4)
    assert_same_run(run_loop(config, TRAIN, VAL, start=run[MIDDLE]).saved, expected, atol=1e-4)


def test_shares_that_differ_by_a_row_have_the_gradient_of_the_whole_batch(
    tiny_tower: str, three_workers: Any
) -> None:
    """Elastic runs need this to resume with any number of workers."""
    found, run = three_workers[0], three_workers[1]["LoRA"]
    for case, ours in zip(UNEVEN, found, strict=True):
        theirs = gradients(tiny_tower, *case, WorkerRank())
        largest = max(tensor.abs().max() for tensor in theirs.values())
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, atol=float(5e-5 * largest), rtol=0)
    expected = run_loop(config_of(tiny_tower, engine__save_every=2), TRAIN, VAL).saved
    assert_same_run(run, expected, atol=1e-4)


def made_by(folder: Path, stage: int, width: int, workers: int, rank: int) -> dict[str, Any]:
    return torch.load(folder / f"{stage}-{width}-{workers}-{rank}.pt", weights_only=False)


@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_deepspeed_on_two_workers_is_plain_torch_on_the_whole_batch(
    spawned: Path, alone: Trained, width: int, stage: int
) -> None:
    for rank in range(WORKERS):
        at_once = made_by(spawned, stage, width, WORKERS, rank)["at once"]
        assert_same_run(at_once, alone.saved, atol=1e-4)


@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_deepspeed_resumes_inside_an_epoch(spawned: Path, width: int, stage: int) -> None:
    for rank in range(WORKERS):
        runs = made_by(spawned, stage, width, WORKERS, rank)
        assert runs["at once"][MIDDLE].position.name == "00001-000000002"
        assert_same_run(runs["own"], runs["at once"], atol=1e-5)


@pytest.mark.parametrize("stage", ZERO_STAGES[:3])
def test_deepspeed_averages_the_weights_of_plain_torch(
    spawned: Path, alone: Trained, width: int, stage: int
) -> None:
    """On both workers, and after a resume from its own checkpoint and from one of plain torch."""
    for rank, name in product(range(WORKERS), ("at once", "own", "plain")):
        found = made_by(spawned, stage, width, WORKERS, rank)[name][-1]
        assert found.recipe["ema/updates"] == 9
        assert_close(average_of(found), average_of(alone.saved[-1]), atol=1e-4)
        row, expected = found.position.history[-1], alone.reported[-1]
        assert row["val_cosine/ema"] == pytest.approx(expected["val_cosine/ema"], abs=1e-4)
        assert row["val_cosine/ema"] != row["val_cosine/raw"]


@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_deepspeed_adds_up_the_gradients_of_parts(spawned: Path, stage: int) -> None:
    runs = made_by(spawned, stage, 0, WORKERS, 0)
    assert_same_run(runs["in parts"], runs["at once"], atol=1e-5)


@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_another_number_of_workers_resumes(
    spawned: Path, alone: Trained, tiny_tower: str, width: int, stage: int
) -> None:
    two = made_by(spawned, stage, width, WORKERS, 0)
    assert_same_run(two["plain"], alone.saved, atol=1e-4)
    assert_same_run(made_by(spawned, stage, width, 1, 0)["two"], two["at once"], atol=1e-4)
    config = config_of(tiny_tower, width=width)
    plain = run_loop(config, TRAIN, VAL, start=two["at once"][MIDDLE])
    assert_same_run(plain.saved, two["at once"], atol=1e-4)


@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_a_checkpoint_has_whole_tensors_and_no_frozen_ones(
    spawned: Path, alone: Trained, width: int, stage: int
) -> None:
    plain = alone.saved[MIDDLE].engine
    parameters = [name for name, _ in trainable(alone.model)]
    assert plain.optimizer.keys() == {f"{name}/{key}" for name in parameters for key in MOMENTS}
    assert len(parameters) < len(list(alone.model.parameters()))
    first, second = (made_by(spawned, stage, width, WORKERS, r)["at once"] for r in range(WORKERS))
    for ours, theirs in zip(first, second, strict=True):
        assert ours.position.loss_sum == theirs.position.loss_sum
        for name, tensor in (ours.engine.model | ours.engine.optimizer).items():
            assert torch.equal((theirs.engine.model | theirs.engine.optimizer)[name], tensor), name
    found = first[MIDDLE].engine
    assert found.steps == plain.steps == 5
    assert_close(found.model, plain.model, atol=1e-4)
    assert_close(found.optimizer, plain.optimizer, atol=1e-4)


def test_a_checkpoint_of_another_model_is_refused(tiny_tower: str) -> None:
    linear, wide = config_of(tiny_tower), config_of(tiny_tower, width=24)
    start = run_loop(linear, TRAIN, VAL).saved[0]
    with pytest.raises(UserError, match="does not fit this config"):
        run_loop(wide, TRAIN, VAL, start=start)


def test_a_run_resumes_with_the_rates_of_its_new_config(tiny_tower: str) -> None:
    config = config_of(tiny_tower)
    start = run_loop(config, TRAIN, VAL).saved[0].engine
    engines = [PlainEngine(model_of(config), config, 9, CPU) for _ in range(2)]
    changed = config.replace({"optim.lr": 2 * config.optim.lr, "optim.warmup": 0.0})
    engines.append(PlainEngine(model_of(changed), changed, 30, CPU))
    for _ in range(start.steps):
        engines[0]._optimizer.step()
        engines[0]._schedule.step()
    for engine in engines[1:]:
        engine.load(start)
    rates = [[group["lr"] for group in engine._optimizer.param_groups] for engine in engines]
    assert rates[1] == rates[0]
    factors = [rate_factor(start.steps, 9, config.optim.warmup), rate_factor(start.steps, 30, 0.0)]
    peaks = [config.optim.lr * factors[0], 2 * config.optim.lr * factors[1]]
    for found, peak in zip(rates[1:], peaks, strict=True):
        assert min(found) == pytest.approx(peak)


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
    trainable = [t for t in engine.module.parameters() if t.requires_grad]
    kept = {id(t): t.grad for t in trainable}
    norm = torch.stack([g.square().sum() for g in kept.values() if g is not None]).sum().sqrt()
    assert norm > 1
    engine.step()
    clipped = torch.stack([g.square().sum() for g in kept.values() if g is not None]).sum().sqrt()
    assert clipped.item() == pytest.approx(config.optim.clip_norm, rel=1e-4)
    assert all(tensor.grad is None for tensor in trainable)


def test_every_worker_needs_a_row() -> None:
    config = TrainConfig(name="x", optim=OptimConfig(batch_size=12))
    check_batch(config, 12)
    check_batch(config, 5)
    with pytest.raises(UserError, match=r"optim\.batch_size is 12; allowed with 13 workers: 13 or"):
        check_batch(config, 13)


def test_micro_batches_are_as_few_as_possible() -> None:
    """12 rows in parts of at most 3 or 1; every worker has a row in each part."""
    config = TrainConfig(
        name="x", optim=OptimConfig(batch_size=12), engine=EngineConfig(micro_batch=3)
    )
    found = [
        (micro_batches(config, workers), rows_at_once(config, workers))
        for workers in (1, 2, 4, 5, 7)
    ]
    assert found == [(4, 3), (2, 3), (1, 3), (1, 3), (1, 2)]
    ones = config.replace({"engine.micro_batch": 1})
    assert [micro_batches(ones, workers) for workers in (1, 5, 12)] == [12, 2, 1]
    for size in (0, 64):  # all, and more than a share
        assert micro_batches(config.replace({"engine.micro_batch": size}), 3) == 1


def test_float16_with_sharded_gradients_is_refused() -> None:
    with pytest.raises(UserError, match=r"zero_stage is 1; allowed: 0 with engine\.precision fp16"):
        EngineConfig(precision="fp16", zero_stage=1)


def test_parts_of_a_batch_with_a_wide_head_are_refused(tiny_tower: str) -> None:
    with pytest.raises(UserError, match="micro_batch is 4; allowed: 0 with a wide head: its Batch"):
        config_of(tiny_tower, width=24, engine__micro_batch=4)


@pytest.mark.parametrize("changes", [{"engine.micro_batch": 4}, {"engine.recompute": True}])
def test_parts_and_recomputing_change_nothing(tiny_tower: str, changes: dict[str, Any]) -> None:
    config = config_of(tiny_tower, optim__epochs=1)
    expected = run_loop(config, TRAIN, VAL).saved
    found = run_loop(config.replace(changes), TRAIN, VAL).saved
    assert curve(found[-1].position.history) == [
        pytest.approx(point, abs=1e-5) for point in curve(expected[-1].position.history)
    ]
    assert_close(found[-1].engine.model, expected[-1].engine.model, atol=1e-5)


def test_recomputing_runs_the_layers_again(tiny_tower: str) -> None:
    calls = []
    for again in (False, True):
        config = config_of(tiny_tower, engine__recompute=again)
        model = model_of(config)
        engine = build_engine(model, config, 9, CPU)
        model.train()
        seen: list[int] = []
        assert model.tower is not None
        for layer in model.tower.layers:
            layer.mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        engine.backward(engine.forward(torch.from_numpy(TRAIN.pixels[:4])).square().mean())
        calls.append(len(seen))
    assert calls[0] == 4
    assert calls[1] > 4


def test_a_scaled_loss_gives_the_same_step(tiny_tower: str) -> None:
    """Float32 with a loss scale: what float16 does on a GPU."""
    config, inputs = config_of(tiny_tower), torch.from_numpy(TRAIN.pixels[:8])
    states = []
    for scaled in (False, True):
        engine = PlainEngine(model_of(config), config, 9, CPU)
        if scaled:
            engine._scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for _ in range(2):
            engine.backward(engine.forward(inputs).square().mean())
            engine.step()
        states.append(engine.state())
    assert_close(states[1].model, states[0].model, atol=1e-6)
    assert (states[0].scale, states[1].scale["scale"]) == ({}, 1024.0)
    engine = PlainEngine(model_of(config), config, 9, CPU)
    engine._scaler = torch.amp.GradScaler("cpu")
    engine.load(states[1])
    assert engine._scaler.get_scale() == 1024.0


def test_zero_3_has_no_dora(tiny_tower: str) -> None:
    config = changed(tiny_tower, 3, 0, 2)
    with pytest.raises(
        UserError, match=r"lora_dora is True; allowed: false with engine\.zero_stage"
    ):
        config.replace({"plan.lora_dora": True})


def test_zero_3_is_not_compiled() -> None:
    cuda = torch.device("cuda")
    assert compiles(EngineConfig(), cuda)
    assert compiles(EngineConfig(compile="on"), CPU)
    assert not compiles(EngineConfig(), CPU)
    assert not compiles(EngineConfig(compile="off"), cuda)
    assert not compiles(EngineConfig(zero_stage=3), cuda)
    with pytest.raises(UserError, match=r"engine.compile is 'on'; allowed: auto or off"):
        EngineConfig(zero_stage=3, compile="on")


@pytest.mark.slow
def test_compiled_layers_learn_the_same(tmp_path: Path) -> None:
    """One step of a LoRA layer and a trained one, and a validation."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    shape |= {"num_hidden_layers": 2, "image_size": 32, "patch_size": 16}
    ClipTower.fresh(shape, seed=0).save(tmp_path, torch.float32)
    plan, rows = PlanConfig(lora_rate=0.5, nfz_rate=0.5, lora_rank=4), MemoryRows(16, seed=1)
    config = config_of(str(tmp_path), plan, optim__epochs=1)
    expected = run_loop(config, rows, rows)
    torch._dynamo.utils.counters.clear()
    found = run_loop(config.replace({"engine.compile": "on"}), rows, rows)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4
    assert_close(found.saved[-1].engine.model, expected.saved[-1].engine.model, atol=1e-5)
    assert curve(found.reported) == [pytest.approx(p, abs=1e-5) for p in curve(expected.reported)]
