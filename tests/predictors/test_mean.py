from pathlib import Path

import numpy as np
import torch
from small_artifacts import pixels_of, write_features, write_shards

from img2prompt.data.vectors import matrix
from img2prompt.predictors.mean import MeanVector

CPU = torch.device("cpu")


def test_every_answer_is_the_mean_training_target(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    expected = matrix(shards.read_tables("train/", ["target"])["target"]).mean(axis=0)
    answers = MeanVector(shards, name="mean").load(CPU).predict(pixels_of(shards, "test"))
    assert answers.vectors.dtype == np.float32
    np.testing.assert_allclose(answers.vectors, [expected] * 6, atol=1e-7)


def test_cached_features_replace_pictures(tmp_path: Path, tiny_tower: str) -> None:
    shards = write_shards(tmp_path / "shards")
    spec = MeanVector(shards, name="mean")
    assert spec.reads_features(write_features(tmp_path / "features", shards, tiny_tower))
    by_features = spec.load_head(CPU).predict(torch.zeros(6, 32))
    by_pictures = spec.load(CPU).predict(pixels_of(shards, "test"))
    np.testing.assert_array_equal(by_features.vectors, by_pictures.vectors)
