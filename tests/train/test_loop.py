import logging
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CPU, MemoryRows, Trained, assert_close, config_of, is_noise, model_of, run_loop
from torch import nn

from img2prompt.config.train import HeadConfig, OptimConfig, PlanConfig, TrainConfig
from img2prompt.data.order import epoch_batches, first_rows
from img2prompt.data.shards import Batch
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import build_prompt_model, learned_state
from img2prompt.train.batches import RowSubset, WorkerRank, prefetch, seed_step, total_steps
from img2prompt.train.checkpoint import History, Position
from img2prompt.train.engines.plain import PlainEngine
from img2prompt.train.health import NonFiniteLossError, PreemptedError, StopRequestedError, Vote
from img2prompt.train.loop import Loop
from img2prompt.train.recipe import Recipe
from img2prompt.train.validation import Candidate, validate

TRAIN, VAL = MemoryRows(53, seed=1), MemoryRows(21, seed=2)


def by_hand(config: TrainConfig, model: nn.Module) -> list[tuple[float, float]]:
    """Train the same run in plain torch; return loss and validation cosine of each epoch."""
    decayed = [t for t in model.parameters() if t.requires_grad and t.ndim > 1]
    plain = [t for t in model.parameters() if t.requires_grad and t.ndim == 1]
    head = {id(tensor) for tensor in model.get_submodule("head").parameters()}
    peaks = [config.optim.head_lr if id(t) in head else config.optim.lr for t in decayed + plain]
    optimizer = torch.optim.AdamW(
        [{"params": [t], "weight_decay": config.optim.weight_decay} for t in decayed]
        + [{"params": [t], "weight_decay": 0.0} for t in plain],
        betas=(0.9, 0.98),
    )
    size, per_epoch = config.optim.batch_size, len(TRAIN) // config.optim.batch_size
    steps = per_epoch * config.optim.epochs
    rise = math.ceil(steps * config.optim.warmup)
    done, curve = 0, []
    for epoch in range(config.optim.epochs):
        batches, losses = epoch_batches(TRAIN.group_sizes, config.seed, epoch, size), []
        model.train()
        for rows in batches:
            predicted = model(torch.from_numpy(TRAIN.pixels[rows]))
            unit = predicted / predicted.norm(dim=1, keepdim=True)
            target = torch.from_numpy(TRAIN.targets[rows])
            loss = 1 - (unit * target / target.norm(dim=1, keepdim=True)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            gradients = [t.grad for t in decayed + plain if t.grad is not None]
            norm = torch.stack([(g**2).sum() for g in gradients]).sum().sqrt()
            for gradient in gradients:
                gradient *= min(1.0, config.optim.clip_norm / (norm.item() + 1e-6))
            fall = (1 + math.cos(math.pi * (done - rise) / (steps - rise))) / 2
            factor = (done + 1) / rise if done < rise else fall
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
            losses.append(loss.item())
            done += 1
        model.eval()
        with torch.no_grad():
            predicted = model(torch.from_numpy(VAL.pixels)).numpy()
        dots = (predicted * VAL.targets).sum(1)
        norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(VAL.targets, axis=1)
        curve.append((float(np.mean(losses)), float((dots / norms).mean())))
    return curve


@pytest.mark.parametrize("width", [0, 24])
def test_the_loop_is_the_one_written_by_hand(tiny_tower: str, width: int) -> None:
    config = config_of(tiny_tower, width=width)
    start, theirs = learned_state(model_of(config)), model_of(config)
    made = run_loop(config, TRAIN, VAL)
    ours = made.model
    curve = by_hand(config, theirs)
    assert [(row["train_loss"], row["val_cosine"]) for row in made.reported] == [
        pytest.approx(point, abs=1e-4 if width else 2e-5) for point in curve
    ]
    assert_close(learned_state(ours), learned_state(theirs), atol=5e-5)
    moved = {n: (t - start[n]).float().abs().max() for n, t in learned_state(ours).items()}
    assert all(far > 5e-4 for name, far in moved.items() if not is_noise(name, width > 0))
    assert curve[-1][0] < curve[0][0]


def test_every_epoch_is_saved_and_reported(tiny_tower: str) -> None:
    made = run_loop(config_of(tiny_tower, optim__epochs=2), TRAIN, VAL)
    assert [row["epoch"] for row in made.reported] == [1, 2]
    assert [point.position.epoch for point in made.saved] == [1, 2]
    assert [point.position.history for point in made.saved] == [made.reported[:1], made.reported]
    assert set(made.reported[1]) == {"epoch", "train_loss", "val_cosine", "rows_per_second"}
    assert made.reported[1]["rows_per_second"] > 0


class Watched(MemoryRows):
    """Records which rows are fetched."""

    def __init__(self, rows: int, seed: int) -> None:
        super().__init__(rows, seed)
        self.seen: list[str] = []

    def fetch(self, rows: np.ndarray) -> Batch:
        batch = super().fetch(rows)
        self.seen.extend(batch.ids)
        return batch


@pytest.mark.parametrize("width", [0, 24])
def test_a_run_resumes_inside_an_epoch_with_the_next_batch(tiny_tower: str, width: int) -> None:
    config = config_of(tiny_tower, width=width, engine__save_every=2, optim__batch_size=10)
    whole = run_loop(config, TRAIN, VAL)
    positions = [(point.position.epoch, point.position.step) for point in whole.saved]
    assert positions == [(0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (2, 0), (2, 2), (2, 4), (3, 0)]
    for start in whole.saved[1:6:4]:
        train = Watched(53, seed=1)
        rest = run_loop(config, train, VAL, start=start)
        now = start.position
        batches = epoch_batches(TRAIN.group_sizes, config.seed, now.epoch, 10)[now.step :]
        left = [f"row-{row}" for row in batches.ravel()]
        assert sorted(train.seen[: len(left)]) == sorted(left)
        for found, expected in zip(rest.reported, whole.reported[now.epoch :], strict=True):
            for name in ("epoch", "train_loss", "val_cosine"):
                assert found[name] == expected[name]
        for name, tensor in learned_state(whole.model).items():
            assert torch.equal(learned_state(rest.model)[name], tensor), name


def test_a_finished_run_has_nothing_to_resume(tiny_tower: str) -> None:
    config = config_of(tiny_tower, optim__epochs=1)
    made = run_loop(config, TRAIN, VAL)
    assert run_loop(config, TRAIN, VAL, start=made.saved[-1]).reported == []


def test_random_draws_follow_from_the_position() -> None:
    def drawn(epoch: int, step: int, rank: int, seed: int = 3) -> float:
        seed_step(seed, Position(epoch=epoch, step=step), rank)
        return torch.rand(1).item()

    at = [(epoch, step, rank) for epoch in (0, 1) for step in (0, 1) for rank in (0, 1)]
    first = [drawn(*position) for position in at]
    assert first == [drawn(*position) for position in at]
    assert len(set(first)) == len(at)
    assert drawn(0, 0, 0, seed=4) not in first


def test_a_seed_gives_one_run(tiny_tower: str) -> None:
    def losses(seed: int) -> list[float]:
        config = config_of(tiny_tower, seed=seed, optim__epochs=1)
        return [row["train_loss"] for row in run_loop(config, TRAIN, VAL).reported]

    assert losses(3) == losses(3)
    assert losses(3) != losses(4)


def test_validation_counts_every_row_once(tiny_tower: str) -> None:
    config = config_of(tiny_tower)
    engine = PlainEngine(model_of(config), config, 9, CPU)
    (expected,) = validate([Candidate(engine)], VAL, WorkerRank(), batch_size=21)
    assert not engine.module.training
    for batch_size in (1, 8, 64):
        found = validate([Candidate(engine)] * 2, VAL, WorkerRank(), batch_size)
        assert found == [pytest.approx(expected, abs=1e-7)] * 2


def test_cached_features_train_a_head_alone(tiny_tower: str) -> None:
    config = config_of(tiny_tower, PlanConfig())

    class Features(MemoryRows):
        def fetch(self, rows: np.ndarray) -> Batch:
            batch = super().fetch(rows)
            features = batch.inputs.mean(axis=(1, 2)).astype(np.float16) / 255
            return replace(batch, inputs=features)

    head = build_prompt_model(None, 3, config.plan, HeadConfig(), 0)
    engine = PlainEngine(head, config, total_steps(config, 53), CPU)
    reports: History = []
    loop = Loop(
        config=config,
        engine=engine,
        recipe=Recipe(),
        train=Features(53, 1),
        val=Features(21, 2),
        worker=WorkerRank(),
        save=lambda _: None,
        report=reports.append,
    )
    loop.run(Position())
    assert reports[-1]["val_cosine"] > reports[0]["val_cosine"]


class Poisoned(MemoryRows):
    """One row has a target of NaN."""

    def fetch(self, rows: np.ndarray) -> Batch:
        batch = super().fetch(rows)
        targets = batch.targets.copy()
        targets[np.array(batch.ids) == "row-7"] = np.nan
        return replace(batch, targets=targets)


def test_a_skipped_batch_leaves_no_trace(tiny_tower: str) -> None:
    """BatchNorm's running statistics, which the forward pass changed, are restored too."""
    config = config_of(tiny_tower, PlanConfig(), width=24, engine__skip_nonfinite=9)
    engine = PlainEngine(build_prompt_model(None, 3, config.plan, config.head, 0), config, 9, CPU)
    loop = Loop(
        config=config,
        engine=engine,
        recipe=Recipe(),
        train=TRAIN,
        val=VAL,
        worker=WorkerRank(),
        save=lambda _: None,
    )
    before = engine.state()
    engine.module.train()
    inputs = np.full((4, 3), np.nan, np.float16)
    loss, vote = loop._step(
        Position(), Batch(list("abcd"), inputs, TRAIN.targets[:4], list("abcd"))
    )
    assert loss is None
    assert vote.nonfinite
    assert_close(engine.state().model, before.model, atol=0)


def test_a_non_finite_validation_ends_the_run_before_it_is_saved(tiny_tower: str) -> None:
    config = config_of(tiny_tower, optim__epochs=1)
    saved: list[Position] = []
    loop = Loop(
        config=config,
        engine=PlainEngine(model_of(config), config, 9, CPU),
        recipe=Recipe(),
        train=TRAIN,
        val=Poisoned(21, seed=2),
        worker=WorkerRank(),
        save=saved.append,
    )
    with pytest.raises(
        NonFiniteLossError, match=r"non-finite validation after epoch 1: .*optim\.lr"
    ):
        loop.run(Position())
    assert saved == []


@pytest.mark.parametrize("micro_batch", [0, 5])
def test_a_non_finite_loss_is_reported_with_its_rows(tiny_tower: str, micro_batch: int) -> None:
    config = config_of(tiny_tower, optim__batch_size=10, engine__micro_batch=micro_batch)
    message = r"non-finite loss at epoch \d, step \d+, rows \['row-7'\]; 0 batches.*optim\.lr"
    with pytest.raises(NonFiniteLossError, match=message):
        run_loop(config, Poisoned(53, seed=1), VAL)


@pytest.mark.parametrize("width", [0, 24])
def test_a_bad_batch_can_be_skipped_and_is_counted(
    tiny_tower: str, width: int, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"optim__batch_size": 10, "optim__epochs": 2, "engine__skip_nonfinite": 2}
    config = config_of(tiny_tower, width=width, **changes)
    order = [epoch_batches(TRAIN.group_sizes, config.seed, epoch, 10) for epoch in (0, 1)]
    expected_skips = int(np.sum([batches == 7 for batches in order]))
    made = run_loop(config, Poisoned(53, seed=1), VAL)
    assert made.saved[-1].position.skipped == expected_skips > 0
    assert made.saved[-1].engine.steps == 10 - expected_skips
    warnings = [line for line in caplog.messages if "batch skipped" in line]
    assert len(warnings) == expected_skips
    assert all("'row-7'" in line for line in warnings)
    assert all(torch.isfinite(t).all() for t in learned_state(made.model).values())
    fewer = config.replace({"engine.skip_nonfinite": expected_skips - 1})
    with pytest.raises(NonFiniteLossError, match=rf"skip_nonfinite allows {expected_skips - 1}\."):
        run_loop(fewer, Poisoned(53, seed=1), VAL)


@pytest.mark.parametrize(
    ("vote", "error"),
    [(Vote(preempted=True), PreemptedError), (Vote(stop_requested=True), StopRequestedError)],
)
def test_a_vote_to_end_saves_first_and_nothing_is_lost(
    tiny_tower: str, vote: Vote, error: type[Exception]
) -> None:
    config = config_of(tiny_tower)
    whole = run_loop(config, TRAIN, VAL)
    votes = iter([Vote()] * 4 + [vote])
    cut = Trained([], [], model_of(config))
    with pytest.raises(error, match="saved before epoch 2, step 3"):
        run_loop(config, TRAIN, VAL, vote=lambda: next(votes), run=cut)
    assert [point.position.name for point in cut.saved] == ["00001-000000000", "00001-000000002"]
    rest = run_loop(config, TRAIN, VAL, start=cut.saved[-1])
    assert_close(rest.saved[-1].engine.model, whole.saved[-1].engine.model, atol=0)
    assert rest.reported[-1]["train_loss"] == whole.reported[-1]["train_loss"]


def test_a_due_checkpoint_is_saved_at_once(tiny_tower: str) -> None:
    votes = iter([Vote(), Vote(save_due=True), *[Vote()] * 7])
    made = run_loop(config_of(tiny_tower), TRAIN, VAL, vote=lambda: next(votes))
    positions = [(point.position.epoch, point.position.step) for point in made.saved]
    assert positions == [(0, 2), (1, 0), (2, 0), (3, 0)]


def test_a_beat_comes_before_each_phase(tiny_tower: str) -> None:
    heard: list[str] = []
    run_loop(config_of(tiny_tower, optim__epochs=1), TRAIN, VAL, beat=heard.append)
    assert heard[:3] == [
        "reading the rows of epoch 1, step 1",
        "computing epoch 1, step 1",
        "reading the rows of epoch 1, step 2",
    ]
    assert heard[-2:] == ["validating from row 0", "validating from row 16"]


@pytest.mark.parametrize(("rows", "steps"), [(16, 3), (31, 3), (32, 6), (53, 9)])
def test_total_steps(rows: int, steps: int) -> None:
    config = TrainConfig(name="x", optim=OptimConfig(epochs=3, batch_size=16))
    assert total_steps(config, rows) == steps


def test_fewer_rows_than_a_batch_are_refused() -> None:
    config = TrainConfig(name="x", optim=OptimConfig(batch_size=16))
    with pytest.raises(
        UserError, match=r"batch_size is 16; allowed with 15 training rows: 1 to 15"
    ):
        total_steps(config, 15)


def test_prefetch_keeps_the_order_and_is_two_batches_ahead() -> None:
    fetched: list[int] = []
    ahead = threading.Event()

    class Slow(MemoryRows):
        def fetch(self, rows: np.ndarray) -> Batch:
            fetched.append(int(rows[0]))
            if len(fetched) == 3:
                ahead.set()
            return super().fetch(rows)

    batches = prefetch(Slow(20, 0), (np.array([n]) for n in (4, 2, 9, 0, 5)))
    assert next(batches).ids == ["row-4"]
    assert ahead.wait(10)  # fetched while the first is used
    assert sorted(fetched) == [2, 4, 9]
    assert [batch.ids[0] for batch in batches] == ["row-2", "row-9", "row-0", "row-5"]
    assert sorted(fetched) == [0, 2, 4, 5, 9]
    assert list(prefetch(Slow(20, 0), iter([]))) == []


def test_prefetched_batches_are_cancelled_with_the_loop() -> None:
    fetched: list[int] = []

    class Noted(MemoryRows):
        def fetch(self, rows: np.ndarray) -> Batch:
            fetched.append(int(rows[0]))
            return super().fetch(rows)

    batches = prefetch(Noted(20, 0), (np.array([n]) for n in range(20)))
    next(batches)
    batches.close()
    assert len(fetched) <= 3


def test_an_error_in_a_fetch_is_raised() -> None:
    class Broken(MemoryRows):
        def fetch(self, rows: np.ndarray) -> Batch:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(prefetch(Broken(20, 0), iter([np.array([0])])))


def test_an_epoch_is_logged(tiny_tower: str, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(tiny_tower, optim__epochs=1)
    with caplog.at_level(logging.INFO, logger="img2prompt"):
        history = run_loop(config, TRAIN, VAL).reported
    line = f"run: epoch 1 of 1, train loss {history[0]['train_loss']:.4f}, val cosine"
    assert any(line in message for message in caplog.messages)


def test_a_share_of_the_rows_is_an_epoch_of_its_own() -> None:
    some = RowSubset(TRAIN, first_rows(TRAIN.group_sizes, 0.5, seed=3))
    chosen = first_rows(TRAIN.group_sizes, 0.5, 3)
    assert len(some) == len(chosen) == 26 == sum(some.group_sizes)
    assert all(size > 0 for size in some.group_sizes)
    batch = some.fetch(np.array([0, 25, 7]))
    assert batch.ids == [f"row-{row}" for row in chosen[[0, 25, 7]]]
    assert np.array_equal(batch.inputs, TRAIN.pixels[chosen[[0, 25, 7]]])


def test_a_paused_run_resumes_as_if_it_had_not_paused(tiny_tower: str) -> None:
    config = config_of(tiny_tower)
    whole = run_loop(config, TRAIN, VAL)
    first = run_loop(config, TRAIN, VAL, until=2)
    assert [row["epoch"] for row in first.reported] == [1, 2]
    assert first.saved[-1].position.epoch == 2
    rest = run_loop(config, TRAIN, VAL, start=first.saved[-1])
    assert [row["epoch"] for row in rest.reported] == [3]
    for key in ("train_loss", "val_cosine"):
        expected = [row[key] for row in whole.reported]
        found = [row[key] for row in first.reported + rest.reported]
        assert found == pytest.approx(expected, abs=1e-6)
    assert_close(learned_state(rest.model), learned_state(whole.model), atol=1e-6)
