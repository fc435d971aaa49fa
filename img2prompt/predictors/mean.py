"""The mean training vector: the baseline that does not look at the picture."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from img2prompt.artifact import Artifact
from img2prompt.data.vectors import DIMENSIONS, matrix
from img2prompt.predictors.base import Answers, Predictor, PredictorSpec


@dataclass(frozen=True)
class MeanVector(PredictorSpec):
    """The mean target over all training pictures of the shards."""

    shards: Artifact

    def fingerprints(self) -> Mapping[str, str]:
        return {"shards": self.shards.fingerprint}

    def check(self, shards: Artifact) -> None:
        assert shards.fingerprint == self.shards.fingerprint

    def load(self, device: torch.device, *, compiled: bool = False) -> Predictor:
        return ConstantPredictor(mean_target(self.shards))

    def reads_features(self, features: Artifact) -> bool:
        return True

    def load_head(self, device: torch.device) -> Predictor:
        return self.load(device)


@dataclass(frozen=True)
class ConstantPredictor:
    """The same vector (384,) for every picture."""

    vector: np.ndarray

    def predict(self, inputs: Tensor) -> Answers:
        return Answers(np.tile(self.vector, (len(inputs), 1)))


def mean_target(shards: Artifact) -> np.ndarray:
    """Return the mean training target float32 (384,), reading one file at a time."""
    total, rows = np.zeros(DIMENSIONS), 0
    for name in shards.names("train/"):
        targets = matrix(shards.read_table(name, ["target"])["target"])
        total += targets.sum(axis=0, dtype=np.float64)
        rows += len(targets)
    return (total / rows).astype(np.float32)
