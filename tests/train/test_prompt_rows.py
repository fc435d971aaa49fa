"""One picture of each prompt an epoch, whatever the number of workers and wherever it resumes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_artifacts import write_shards
from tiny import MemoryRows, config_of, run_loop

from img2prompt.artifact import Artifact
from img2prompt.config.train import PlanConfig
from img2prompt.data.order import epoch_batches, first_rows, steps_per_epoch
from img2prompt.data.shards import Batch, ShardRows
from img2prompt.errors import UserError
from img2prompt.train.batches import RowSubset
from img2prompt.train.job import TrainInputs, open_rows
from img2prompt.train.prompt_rows import OnePerPrompt, prompt_labels, rows_of_epoch

TRAIN, VAL = MemoryRows(83, seed=1), MemoryRows(21, seed=2)
LABELS = np.random.default_rng(5).integers(100, 140, 83)
PROMPTS = len(np.unique(LABELS))


def numbers_of(batch: Batch) -> list[int]:
    return [int(row_id.removeprefix("row-")) for row_id in batch.ids]


def test_an_epoch_has_one_row_of_each_prompt() -> None:
    rows = OnePerPrompt(TRAIN, LABELS, seed=3)
    assert len(rows) == PROMPTS < 45
    seen: dict[int, set[int]] = {}
    for epoch in range(60):
        own = rows.of_epoch(epoch)
        assert len(own) == PROMPTS == own.group_sizes.sum()
        numbers = numbers_of(own.fetch(np.arange(PROMPTS)))
        assert numbers == sorted(numbers)
        assert sorted(LABELS[numbers]) == sorted(np.unique(LABELS))
        for number in numbers:
            seen.setdefault(int(LABELS[number]), set()).add(number)
    assert set().union(*seen.values()) == set(range(83))
    again = OnePerPrompt(TRAIN, LABELS, seed=3).of_epoch(7)
    assert numbers_of(again.fetch(np.arange(PROMPTS))) == numbers_of(
        rows.of_epoch(7).fetch(np.arange(PROMPTS))
    )
    other = OnePerPrompt(TRAIN, LABELS, seed=4).of_epoch(7)
    assert numbers_of(other.fetch(np.arange(PROMPTS))) != numbers_of(
        again.fetch(np.arange(PROMPTS))
    )


def test_pictures_of_a_prompt_are_drawn_alike_often() -> None:
    rows = OnePerPrompt(TRAIN, np.where(np.arange(83) < 4, 0, np.arange(83)), seed=0)
    drawn = [numbers_of(rows.of_epoch(epoch).fetch(np.arange(1)))[0] for epoch in range(400)]
    counts = np.bincount(drawn, minlength=4)
    assert counts.sum() == 400
    assert counts.min() > 70


def test_other_rows_are_those_of_every_epoch() -> None:
    assert rows_of_epoch(TRAIN, 3) is TRAIN


def test_a_run_reads_the_rows_of_its_epochs_and_resumes_exactly(tiny_tower: str) -> None:
    rows, read = OnePerPrompt(TRAIN, LABELS, seed=0), list[int]()

    class Noted(MemoryRows):
        def fetch(self, rows: np.ndarray) -> Batch:
            read.extend(rows.tolist())
            return super().fetch(rows)

    config = config_of(tiny_tower, engine__save_every=1)
    steps = steps_per_epoch(PROMPTS, 16)
    whole = run_loop(config, OnePerPrompt(Noted(83, seed=1), LABELS, seed=0), VAL)
    expected = set[int]()
    for epoch in range(3):
        own = rows.of_epoch(epoch)
        batches = epoch_batches(own.group_sizes, config.seed, epoch, 16)
        assert len(batches) == steps == 2
        expected |= set(numbers_of(own.fetch(batches.ravel())))
    assert set(read) == expected
    assert whole.saved[-1].engine.steps == 3 * steps
    rest = run_loop(config, rows, VAL, start=whole.saved[2])
    assert whole.saved[2].position.step == 1
    for name, tensor in whole.saved[-1].engine.model.items():
        assert torch.equal(rest.saved[-1].engine.model[name], tensor)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_shards(tmp_path_factory.mktemp("prompts") / "shards")


def test_labels_follow_the_rows_of_shards(shards: Artifact) -> None:
    labels, rows = prompt_labels(shards, "train"), ShardRows(shards, "train")
    prompts = rows.fetch(np.arange(len(rows))).prompt_ids
    assert len(labels) == len(rows) == 12
    for one in range(12):
        assert [a == labels[one] for a in labels] == [p == prompts[one] for p in prompts]


def test_a_run_of_a_share_draws_from_the_pictures_of_the_share(
    shards: Artifact, tiny_tower: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labels = np.arange(12) // 3
    monkeypatch.setattr("img2prompt.train.job.prompt_labels", lambda *_: labels)
    changes = {"recipe__one_per_prompt": True, "optim__share": 0.5}
    config = config_of(tiny_tower, **changes)
    rows = open_rows(config, TrainInputs(shards), "train")
    all_rows = ShardRows(shards, "train")
    numbers = first_rows(all_rows.group_sizes, 0.5, config.seed)
    assert isinstance(rows, OnePerPrompt)
    assert len(rows) == len(np.unique(labels[numbers])) < 6
    ids = RowSubset(all_rows, numbers).fetch(np.arange(6)).ids
    assert set(rows.of_epoch(1).fetch(np.arange(len(rows))).ids) <= set(ids)
    val = open_rows(config, TrainInputs(shards), "val")
    assert len(val) == 3


def test_a_probe_reads_all_its_rows(tiny_tower: str) -> None:
    with pytest.raises(UserError, match=r"recipe\.one_per_prompt is True; allowed: false for a pr"):
        config_of(tiny_tower, PlanConfig(), recipe__one_per_prompt=True)
