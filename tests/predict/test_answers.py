"""Predictors as the columns of an actor, in this process."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_artifacts import pixels_of, write_features, write_run, write_shards
from tiny import FINETUNE

from img2prompt.config.train import PlanConfig
from img2prompt.predict.answers import AnswerColumns, read_answers
from img2prompt.predictors.base import Answers, PredictorSpec
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.neighbours import NearestNeighbours
from img2prompt.predictors.trained import TrainedRun

CPU = torch.device("cpu")


def table_of(columns: dict) -> pa.Table:
    return pa.table({name: pa.array(list(values)) for name, values in columns.items()})


@torch.inference_mode()
def test_columns_are_the_answers_of_each_predictor(tmp_path: Path, tiny_tower: str) -> None:
    shards = write_shards(tmp_path / "shards")
    features = write_features(tmp_path / "features", shards, tiny_tower)
    systems = [
        MeanVector(shards, name="mean"),
        NearestNeighbours(features, shards, neighbours=3, name="neighbours"),
        TrainedRun(write_run(tmp_path / "p", shards, tiny_tower, PlanConfig()), name="probe"),
        TrainedRun(write_run(tmp_path / "l", shards, tiny_tower, FINETUNE), name="lora"),
    ]
    pixels = pixels_of(shards, "test")
    table = table_of(AnswerColumns(systems, ["plain"], CPU)(pixels))
    assert len(table.column_names) == 4
    for spec in systems:
        answers = read_answers(table, spec.name)
        np.testing.assert_array_equal(answers.vectors, spec.load(CPU).predict(pixels).vectors)
        assert answers.texts is None
        assert answers.confidences is None


@dataclass(frozen=True)
class LeftPixels(PredictorSpec):
    """Answers with the left column of a picture; a bright one is a confident answer."""

    def fingerprints(self): ...
    def check(self, shards): ...
    def load(self, device: torch.device, *, compiled: bool = False) -> "LeftPixels":
        return self

    def predict(self, inputs: torch.Tensor) -> Answers:
        left = inputs[:, :, 0].reshape(len(inputs), -1).numpy()
        brightness = left.mean(axis=1)
        vectors = np.zeros((len(left), 384), np.float32)
        vectors[:, : left.shape[1]] = left
        return Answers(vectors, [f"brightness {level:.0f}" for level in brightness], brightness)


def test_texts_and_confidences_are_columns_too() -> None:
    pixels = torch.arange(4 * 5 * 5 * 3, dtype=torch.uint8).reshape(4, 5, 5, 3)
    spec = LeftPixels(name="left, of all")
    answers = read_answers(table_of(AnswerColumns([spec], ["plain"], CPU)(pixels)), spec.name)
    expected = spec.predict(pixels)
    assert answers.texts == expected.texts
    np.testing.assert_array_equal(answers.confidences, expected.confidences)
    np.testing.assert_array_equal(answers.vectors, expected.vectors)


def test_a_flip_changes_what_the_predictor_sees_and_is_averaged() -> None:
    pixels = torch.randint(1, 256, (3, 5, 5, 3), dtype=torch.uint8)
    spec = LeftPixels(name="left")
    columns = AnswerColumns([spec], ["plain", "flip"], CPU)(pixels)
    left, right = (pixels[:, :, side].reshape(3, -1).numpy().astype(float) for side in (0, -1))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, right)]
    found = columns["vector of left"][:, : left.shape[1]]
    np.testing.assert_allclose(found, (unit[0] + unit[1]) / 2, atol=1e-6)
    brightest = np.maximum(left.mean(axis=1), right.mean(axis=1))
    np.testing.assert_allclose(columns["confidence of left"], brightest)
    assert list(columns["text of left"]) == [f"brightness {level:.0f}" for level in brightest]


@pytest.mark.parametrize("name", ["lora", "mean vector", "a, b/c"])
def test_any_name_of_a_predictor_is_read_back(name: str) -> None:
    columns = AnswerColumns([LeftPixels(name=name)], ["plain"], CPU)(
        torch.ones(2, 4, 4, 3, dtype=torch.uint8)
    )
    assert read_answers(table_of(columns), name).vectors.shape == (2, 384)
