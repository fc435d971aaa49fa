"""A probe in closed form from features in files, in this process."""

import logging
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
import torch
from small_features import FILES, PROMPTS, WIDTH, rows_of, write, write_groups

from img2prompt.config.prepare import FeaturesConfig
from img2prompt.config.train import OptimConfig
from img2prompt.data.shards import read_feature_file
from img2prompt.data.vectors import DIMENSIONS, vector_column
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.heads.ridge import RidgeSums, solve
from img2prompt.train import folds
from img2prompt.train.folds import folds_of_prompts
from img2prompt.train.job import TrainInputs
from img2prompt.train.ridge import RidgeResult, solve_probe

FOLDS = 4
RIDGE = OptimConfig(solver="ridge", ridge_folds=FOLDS, ridge_strengths=(1e-3, 0.1, 3.0))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TrainInputs:
    return write(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def solved(inputs: TrainInputs) -> RidgeResult:
    return solve_probe(RIDGE, inputs, map)


def score(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    predicted = x @ weight + bias
    return (predicted * y).sum(axis=1) / np.linalg.norm(predicted, axis=1)


def test_cosines_are_those_of_fits_that_never_saw_the_rows(
    inputs: TrainInputs, solved: RidgeResult
) -> None:
    assert inputs.groups is not None
    x, y, prompts = rows_of(inputs, "train")
    val_x, val_y, _ = rows_of(inputs, "val")
    fold_of = folds_of_prompts(inputs.groups, FOLDS)
    folds = np.array([fold_of[each] for each in prompts])
    for row in solved.history:
        scores = np.empty(len(x))
        for fold in range(FOLDS):
            mine = folds == fold
            head = solve(RidgeSums.over(x[~mine], y[~mine]), [row["strength"]])
            scores[mine] = score(head.weight[0], head.bias[0], x[mine], y[mine])
        assert row["fold_cosine"] == pytest.approx(scores.mean(), abs=1e-9)
        head = solve(RidgeSums.over(x, y), [row["strength"]])
        val = score(head.weight[0], head.bias[0], val_x, val_y).mean()
        assert row["val_cosine"] == pytest.approx(val, abs=1e-9)


def test_the_head_of_the_best_strength_learned_from_all_rows(
    inputs: TrainInputs, solved: RidgeResult
) -> None:
    assert [row["strength"] for row in solved.history] == list(RIDGE.ridge_strengths)
    assert solved.best == max(solved.history, key=lambda row: row["fold_cosine"])
    x, y, _ = rows_of(inputs, "train")
    head = solve(RidgeSums.over(x, y), [solved.best["strength"]])
    assert solved.state.keys() == {"head.weight", "head.bias"}
    assert solved.state["head.weight"].shape == (DIMENSIONS, WIDTH)
    assert all(tensor.dtype == torch.float32 for tensor in solved.state.values())
    np.testing.assert_allclose(solved.state["head.weight"].numpy().T, head.weight[0], atol=1e-6)
    np.testing.assert_allclose(solved.state["head.bias"].numpy(), head.bias[0], atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_the_files_do_not_change_the_result(
    parts: int, inputs: TrainInputs, solved: RidgeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folds, "PARTS", parts)
    orders: tuple = (map, lambda function, files: map(function, reversed(files)))
    for spread in orders:
        ours = solve_probe(RIDGE, inputs, spread)
        for name, tensor in solved.state.items():
            torch.testing.assert_close(ours.state[name], tensor, atol=1e-6, rtol=0)
        for row, expected in zip(ours.history, solved.history, strict=True):
            assert row == pytest.approx(expected, abs=1e-9)


def test_views_are_learned_from_but_not_scored(tmp_path: Path) -> None:
    inputs = write(tmp_path, views=("plain", "flip"))
    assert inputs.features is not None
    assert inputs.groups is not None
    files = [
        read_feature_file(inputs.features, inputs.shards, name)
        for name in inputs.features.names("train/")
    ]
    total = reduce(add, [RidgeSums.over(file.features, file.targets) for file in files])
    assert total.rows == 2 * sum(FILES["train"])
    ours = solve_probe(RIDGE, inputs, map)
    head = solve(total, [ours.best["strength"]])
    np.testing.assert_allclose(ours.state["head.weight"].numpy().T, head.weight[0], atol=1e-6)
    val = score(head.weight[0], head.bias[0], *rows_of(inputs, "val")[:2]).mean()
    assert ours.best["val_cosine"] == pytest.approx(val, abs=1e-9)


def test_a_group_is_in_one_fold_and_folds_are_balanced(tmp_path: Path) -> None:
    labels = [0] * 9 + list(range(1, 28))
    fold_of = folds_of_prompts(write_groups(tmp_path, labels), 4)
    assert len(fold_of) == len(labels)  # neither dropped prompts nor other splits
    assert len({fold_of[f"train-{number}"] for number in range(9)}) == 1
    assert np.bincount(list(fold_of.values())).tolist() == [9, 9, 9, 9]


def test_there_are_no_more_folds_than_groups(tmp_path: Path) -> None:
    fold_of = folds_of_prompts(write_groups(tmp_path, [0, 0, 1]), 5)
    assert set(fold_of.values()) == {0, 1}


def test_training_pictures_of_one_group_are_refused(inputs: TrainInputs, tmp_path: Path) -> None:
    own = TrainInputs(inputs.shards, inputs.features, groups=write_groups(tmp_path, [7] * PROMPTS))
    with pytest.raises(UserError, match="training pictures of one similarity group only"):
        solve_probe(RIDGE, own, map)


def test_a_non_finite_feature_is_refused_with_its_row(inputs: TrainInputs, tmp_path: Path) -> None:
    assert inputs.features is not None
    draft = Draft.open(str(tmp_path), "features", FeaturesConfig(), {})
    for name in inputs.features.names():
        table = inputs.features.read_table(name)
        values = np.array(table["feature"].to_pylist())
        if name == "train/00001.parquet":
            values[4, 2] = np.inf
        draft.write_table(name, table.set_column(2, "feature", vector_column(values, np.float16)))
    own = TrainInputs(inputs.shards, draft.publish(), groups=inputs.groups)
    with pytest.raises(UserError, match=r"train/00001\.parquet has a non-finite feature in row 4"):
        solve_probe(RIDGE, own, map)


def test_a_best_strength_at_the_end_of_the_list_is_reported(
    inputs: TrainInputs, solved: RidgeResult, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for strengths in ((1e-6, 1e-5), (1e5, 1e6), (0.1,)):
            solve_probe(OptimConfig(solver="ridge", ridge_strengths=strengths), inputs, map)
    assert len(caplog.messages) == 2
    assert all("at the end of optim.ridge_strengths" in line for line in caplog.messages)
