"""Heads that learn together in this process, each compared with a run alone."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import CPU, TINY, MemoryRows, Trained, assert_close, run_loop

from img2prompt.config.prepare import FeaturesConfig, ShardConfig
from img2prompt.config.train import TrainConfig
from img2prompt.data.shards import SCHEMA, Batch, FeatureRows
from img2prompt.data.vectors import vector_column
from img2prompt.draft import Draft
from img2prompt.model.prompt_model import build_prompt_model
from img2prompt.train import heads_together as heads_worker
from img2prompt.train.checkpoint import Position
from img2prompt.train.heads_together import HeadOutcome, LearningHead, train_heads
from img2prompt.train.job import TrainInputs, TrainJob, checkpoints

WIDTH, EPOCHS = 24, 3
GRID = list(product((0, 12), (0.0, 0.3), (2e-3, 2e-2)))
"""Widths, dropouts and rates."""
HUGE = 3e37
"""A learning rate that diverges."""


def config_of(width: int, dropout: float, lr: float) -> TrainConfig:
    return TINY.replace(
        {
            "name": f"{width}-{dropout}-{lr}",
            "head.width": width,
            "head.dropout": dropout,
            "optim.head_lr": lr,
            "optim.epochs": EPOCHS,
        }
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread here and in the runs alone: the number of threads changes rounding."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TrainInputs:
    """53 and 21 rows, whose features are the brightness of bands of a picture."""
    folder = tmp_path_factory.mktemp("features")
    shards = Draft.open(str(folder / "shards"), "shards", ShardConfig(size=32), {})
    features = Draft.open(str(folder / "features"), "features", FeaturesConfig(), {})
    for split, rows in (("train", MemoryRows(53, seed=1)), ("val", MemoryRows(21, seed=2))):
        batch = rows.fetch(np.arange(len(rows)))
        bands = rows.pixels.reshape(len(rows), WIDTH, -1).mean(axis=2) / 255
        blank = [b""] * len(rows)
        targets = vector_column(rows.targets)
        name = f"{split}/00000.parquet"
        columns = [batch.ids, batch.prompt_ids, batch.ids, blank, targets]
        shards.write_table(name, pa.table(columns, schema=SCHEMA))
        vectors = vector_column(bands, np.float16)
        plain = ["plain"] * len(rows)
        features.write_table(name, pa.table({"id": batch.ids, "view": plain, "feature": vectors}))
    return TrainInputs(shards.publish(train=53), features.publish())


@pytest.fixture
def jobs(inputs: TrainInputs, tmp_path: Path) -> Callable[..., list[TrainJob]]:
    def make(*more: tuple[int, float, float]) -> list[TrainJob]:
        configs = [config_of(*head) for head in [*GRID, *more]]
        return [TrainJob(config, inputs, str(tmp_path / config.name)) for config in configs]

    return make


@pytest.fixture(scope="module")
def alone(inputs: TrainInputs) -> dict[str, Trained]:
    """Every head of the grid, trained by itself."""
    assert inputs.features is not None
    rows = [FeatureRows(inputs.features, inputs.shards, split) for split in ("train", "val")]
    made = {}
    for head in GRID:
        config = config_of(*head)
        model = build_prompt_model(None, WIDTH, config.plan, config.head, config.seed)
        made[config.name] = run_loop(config, *rows, run=Trained([], [], model))
    return made


def curve(history: Sequence[dict]) -> list[tuple[float, float]]:
    return [(row["train_loss"], row["val_cosine"]) for row in history]


def assert_as_alone(
    jobs: Sequence[TrainJob], found: list[HeadOutcome], alone: dict[str, Trained]
) -> None:
    """All heads that did not fail have the losses, scores and weights of their run alone."""
    able = [(job, outcome) for job, outcome in zip(jobs, found, strict=True) if not outcome.reason]
    assert [job.config.name for job, _ in able] == list(alone)
    for job, outcome in able:
        expected = alone[job.config.name]
        assert curve(outcome.history) == [
            pytest.approx(point, abs=1e-6) for point in curve(expected.reported)
        ]
        last = heads_worker._store(job).newest()
        assert last is not None
        assert last.position.epoch == EPOCHS
        assert_close(dict(last.engine.model), expected.saved[-1].engine.model, atol=1e-5)


def test_heads_together_end_as_each_does_alone(jobs, alone, monkeypatch) -> None:
    fetched: list[int] = []
    fetch = FeatureRows.fetch

    def counted(rows: FeatureRows, numbers: np.ndarray) -> Batch:
        fetched.append(len(numbers))
        return fetch(rows, numbers)

    monkeypatch.setattr(FeatureRows, "fetch", counted)
    made = jobs()
    found = train_heads(made, WIDTH)
    assert_as_alone(made, found, alone)
    assert len(fetched) == EPOCHS * (53 // 16 + 2), "one pass for all: three batches, two to score"
    finals = [tuple(outcome.history[-1].values()) for outcome in found]
    assert len(set(finals)) == len(GRID), "width, dropout and rate all matter"
    seconds = [outcome.seconds for outcome in found]
    assert all(0 < own < sum(seconds) for own in seconds)


def test_heads_that_were_killed_between_two_saves_resume(jobs, alone, monkeypatch) -> None:
    """Some heads have saved two epochs, others one."""
    made, end = jobs(), LearningHead.end_epoch

    def killed(head: LearningHead, *scores: Any) -> None:
        if head.position.epoch == 1 and head.out == made[3].out:
            raise KeyboardInterrupt
        end(head, *scores)

    with monkeypatch.context() as patch:
        patch.setattr(LearningHead, "end_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            train_heads(made, WIDTH)
    stores = [heads_worker._store(job) for job in made]
    wait_for_writers()
    newest = [store.newest() for store in stores]
    assert {point.position.epoch for point in newest if point} == {1, 2}
    first = [point.position.history[0] for point in newest if point]
    begun: list[int] = []
    epoch = heads_worker._epoch

    def noted(heads, *rest) -> None:
        begun.append(heads[0].position.epoch)
        epoch(heads, *rest)

    monkeypatch.setattr(heads_worker, "_epoch", noted)
    found = train_heads(made, WIDTH)
    assert begun == [1, 2]
    assert [outcome.history[0] for outcome in found] == first, "speeds too: not trained again"
    assert_as_alone(made, found, alone)
    train_heads(made, WIDTH)
    assert begun == [1, 2], "nothing is left to do"


def wait_for_writers() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint"):
            thread.join(0.5)


def test_a_damaged_checkpoint_takes_all_heads_back_an_epoch(jobs, alone, caplog) -> None:
    made = jobs()
    whole = train_heads(made, WIDTH)
    weights = Path(checkpoints(made[2].out).uri) / Position(epoch=EPOCHS).name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found = train_heads(made, WIDTH)
    assert f"checkpoint {Position(epoch=EPOCHS).name} of a head is damaged" in caplog.text
    assert [curve(outcome.history) for outcome in found] == [curve(o.history) for o in whole]
    assert_as_alone(made, found, alone)


@pytest.mark.parametrize("width", [0, 12])
def test_a_head_with_a_non_finite_loss_fails_alone(jobs, alone, width: int, monkeypatch) -> None:
    made = jobs((width, 0.0, HUGE))
    found = train_heads(made, WIDTH)
    assert_as_alone(made, found, alone)
    assert "non-finite" in found[-1].reason
    assert len(found[-1].history) < EPOCHS
    failure = json.loads((Path(made[-1].out) / heads_worker.FAILED).read_text())
    assert failure == {"reason": found[-1].reason, "history": found[-1].history}
    again = train_heads(made, WIDTH)
    assert again == found
    failing = train_heads(made[-1:], WIDTH)
    assert failing == found[-1:], "also when no head is left"


def test_heads_learn_on_the_gpu_if_there_is_one() -> None:
    expected = torch.device("cuda") if torch.cuda.is_available() else CPU
    assert heads_worker._device() == expected
