"""Confidence: how well a predictor's answer will score, estimated for each picture.

A linear head reads signals of an answer and predicts its cosine with the true prompt. The nearest
prompt's cosine alone would mislead: pictures unlike the training pictures have near prompts too. A
picture whose features are further from the training pictures' than those of nearly all validation
pictures gets the lowest confidence. `predict/calibrate.py` fits both.

Shapes: N pictures, S signals, D numbers of a feature.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import faiss
import numpy as np
import safetensors.numpy
import torch
from torch import Tensor, nn

from img2prompt.artifact import Artifact
from img2prompt.data.vectors import unit_rows
from img2prompt.errors import UserError
from img2prompt.predictors.base import Answers, Predictor, PredictorSpec, at_unit_length
from img2prompt.predictors.neighbours import NearestNeighbours, NeighbourPredictor
from img2prompt.storage import read_bytes
from img2prompt.workspace import CONFIDENCE_HEAD

SIGNALS = (
    "length of the vector",
    "cosine to the nearest training prompt",
    "mean cosine to the nearest training pictures' prompts",
    "cosine to the mean training vector",
    "cosine to the neighbours' mean prompt",
    "agreement of the neighbours' prompts",
    "likeness of the neighbours",
)
NEAREST = 10
"""Training pictures whose prompts are the nearest ones."""


class Signals:
    """Computes the signals of answers.

    Args:
        targets: unit vectors (T, 384) of the training pictures' prompts.
    """

    def __init__(self, targets: np.ndarray) -> None:
        self._index = faiss.IndexFlatIP(targets.shape[1])
        self._index.add(np.ascontiguousarray(targets, np.float32))
        self._mean = unit_rows(targets.mean(axis=0, keepdims=True))[0]

    def of(self, vectors: np.ndarray, means: np.ndarray, likeness: np.ndarray) -> np.ndarray:
        """Return signals (N, S) in the order of SIGNALS; NaN for vectors that are not finite.

        Args:
            vectors: predicted vectors (N, 384).
            means: mean targets (N, 384) of the neighbours in feature space.
            likeness: mean cosines (N,) of the neighbours' features.
        """
        unit = at_unit_length(vectors)
        queries = np.nan_to_num(unit).astype(np.float32)
        cosines, _ = self._index.search(queries, min(NEAREST, self._index.ntotal))
        lengths = np.linalg.norm(means, axis=1)
        columns = [
            np.log(np.linalg.norm(vectors, axis=1)),
            cosines[:, 0],
            cosines.mean(axis=1),
            unit @ self._mean,
            np.sum(unit * means, axis=1) / lengths,
            lengths,
            likeness,
        ]
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class ConfidenceHead:
    """A linear function of signals, limited to the cosines it was fitted on."""

    weights: np.ndarray
    """(S,)."""
    bias: float
    low: float
    high: float
    """Range of the confidences."""

    def apply(self, signals: np.ndarray) -> np.ndarray:
        """Return confidences float32 (N,) for signals (N, S)."""
        return np.clip(signals @ self.weights + self.bias, self.low, self.high).astype(np.float32)


@dataclass(frozen=True)
class Novelty:
    """Mahalanobis distance of features to the training pictures' features.

    The idea of Lee et al., "A simple unified framework for detecting out-of-distribution samples"
    (arXiv 1807.03888), without classes.
    """

    mean: np.ndarray
    """(D,)."""
    whitening: np.ndarray
    """(D, D): the inverse covariance is its product with its transpose."""
    limit: float
    """Largest distance of a picture like the training pictures."""

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Return distances (N,) of features (N, D)."""
        return np.linalg.norm((features - self.mean) @ self.whitening, axis=1)


@dataclass(frozen=True)
class CalibratedRun(PredictorSpec):
    """A predictor with the confidence of its answers."""

    calibration: Artifact
    base: PredictorSpec
    neighbours: NearestNeighbours
    head: ConfidenceHead
    novelty: Novelty

    def fingerprints(self) -> Mapping[str, str]:
        return {"calibration": self.calibration.fingerprint}

    def check(self, shards: Artifact) -> None:
        self.calibration.require_input("shards", shards)
        self.base.check(shards)
        self.neighbours.check(shards)

    def load(self, device: torch.device, *, compiled: bool = False) -> Predictor:
        tower = self.neighbours.load_tower(device, compiled=compiled)
        return self._with(self.base.load(device, compiled=compiled), tower, device)

    def has_confidences(self) -> bool:
        return True

    def reads_features(self, features: Artifact) -> bool:
        return self.base.reads_features(features) and self.neighbours.reads_features(features)

    def load_head(self, device: torch.device) -> Predictor:
        return self._with(self.base.load_head(device), nn.Identity(), device)

    def _with(self, base: Predictor, tower: nn.Module, device: torch.device) -> Predictor:
        neighbours = self.neighbours.load_head(device)
        signals = Signals(neighbours.targets)
        return CalibratedPredictor(base, tower, neighbours, signals, self.head, self.novelty)


@dataclass(frozen=True)
class CalibratedPredictor:
    """A loaded predictor, and what its confidence is computed from."""

    base: Predictor
    tower: nn.Module
    """From the inputs to features of the neighbours."""
    neighbours: NeighbourPredictor
    signals: Signals
    head: ConfidenceHead
    novelty: Novelty

    def predict(self, inputs: Tensor) -> Answers:
        answers = self.base.predict(inputs)
        features = self.tower(inputs)
        means, likeness = self.neighbours.neighbourhood(features)
        confidences = self.head.apply(self.signals.of(answers.vectors, means, likeness))
        distances = self.novelty.distances(features.double().cpu().numpy())
        # Features that are not finite have no distance.
        confidences[~(distances <= self.novelty.limit)] = self.head.low
        return replace(answers, confidences=confidences)


def open_calibrated(
    calibration: Artifact, base: PredictorSpec, features: Artifact, shards: Artifact, name: str
) -> CalibratedRun:
    """Return a finished calibration of the predictor `base`.

    Raises:
        UserError: the predictor or the features are not those that the head was fitted for.
    """
    count = calibration.config["neighbours"]
    neighbours = NearestNeighbours(features, shards, count, name="neighbours")
    for key, fingerprint in {**base.fingerprints(), **neighbours.fingerprints()}.items():
        if calibration.inputs.get(key) != fingerprint:
            raise UserError(
                f"{calibration.uri} was fitted for another {key} than that of {base.name!r}: "
                "delete it and run jobs/calibrate.py again"
            )
    tensors = safetensors.numpy.load(read_bytes(calibration.path(CONFIDENCE_HEAD)))
    limits = {key: float(tensors[key]) for key in ("bias", "low", "high")}
    head = ConfidenceHead(tensors["weights"], **limits)
    novelty = Novelty(
        tensors["novelty.mean"], tensors["novelty.whitening"], float(tensors["novelty.limit"])
    )
    return CalibratedRun(calibration, base, neighbours, head, novelty, name=name)
