"""Nearest neighbours, in feature space and among prompts.

`NearestNeighbours` predicts vectors from the training pictures that look most alike.
`NearestPrompts` lists the known prompts that are closest to a vector. Both search exactly (faiss
`IndexFlatIP` over unit rows).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor

from img2prompt.artifact import Artifact
from img2prompt.data.vectors import finite_rows, matrix, unit_rows
from img2prompt.model.inference import compile_for_batches, prepare_for_inference
from img2prompt.model.towers.base import Tower
from img2prompt.predictors.base import (
    Answers,
    Predictor,
    PredictorSpec,
    TowerPredictor,
    at_unit_length,
)
from img2prompt.predictors.cached import load_frozen_tower, read_view

_QUERIES_AT_ONCE = 1024
_ROWS_AT_ONCE = 65536


class NearestPrompts:
    """An index of known prompts, which gives readable prompts for predicted vectors.

    With `csls`, the order of the matches is corrected for hubs: prompts that are near to everything
    and so would be listed for many pictures. Half of a prompt's mean cosine to its nearest other
    prompts is subtracted from its cosine. This is CSLS (Conneau et al., "Word translation without
    parallel data", arXiv 1710.04087) with known prompts in place of the queries, so that the list
    of a picture does not depend on the other pictures.

    Args:
        vectors: prompt vectors (N, D), N >= 1.
        prompts: their N texts.
        csls: nearest other prompts that are averaged; 0: no correction. Takes time in N squared.
    """

    def __init__(self, vectors: np.ndarray, prompts: Sequence[str], csls: int = 0) -> None:
        if len(vectors) != len(prompts):
            raise ValueError(f"{len(vectors)} vectors for {len(prompts)} prompts")
        self._index = _index(vectors, "vectors")
        self._prompts = prompts
        self._penalties = np.zeros(len(prompts), np.float32)
        if csls:
            self._penalties = self._hub_cosines(csls) / 2
            own = self._index.reconstruct_n(0, len(prompts))
            self._index = faiss.IndexFlatIP(vectors.shape[1] + 1)
            self._index.add(np.hstack([own, -self._penalties[:, None]]))
        self._extra = self._index.d - vectors.shape[1]

    def search(self, queries: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
        """Return the k nearest prompts and their cosines for each query (Q, D), nearest first.

        Returns all prompts when there are fewer than k.
        """
        unit = unit_rows(queries, "queries").astype(np.float32)
        unit = np.hstack([unit, np.ones((len(unit), self._extra), np.float32)])
        scores, rows = self._index.search(unit, min(k, self._index.ntotal))
        cosines = scores + self._penalties[rows]
        return [
            [(self._prompts[row], float(value)) for row, value in zip(*pair, strict=True)]
            for pair in zip(rows, cosines, strict=True)
        ]

    def _hub_cosines(self, count: int) -> np.ndarray:
        """Return each prompt's mean cosine (N,) to the `count` nearest other prompts."""
        total, means = self._index.ntotal, []
        count = min(count, total - 1)
        if not count:
            return np.zeros(total, np.float32)
        for start in range(0, total, _QUERIES_AT_ONCE):
            own = self._index.reconstruct_n(start, min(_QUERIES_AT_ONCE, total - start))
            cosines, rows = self._index.search(own, count + 1)
            # A prompt with many copies may be missing from its own list.
            itself = rows == np.arange(start, start + len(own))[:, None]
            itself[:, -1] |= ~itself.any(axis=1)
            means.append(cosines[~itself].reshape(-1, count).mean(axis=1))
        return np.concatenate(means)


@dataclass(frozen=True)
class NearestNeighbours(PredictorSpec):
    """k-NN over the cached features of the training pictures.

    Each actor holds the index: 4 bytes for each number of a feature, and the targets.
    """

    features: Artifact
    shards: Artifact
    neighbours: int

    def fingerprints(self) -> Mapping[str, str]:
        return {"features": self.features.fingerprint}

    def check(self, shards: Artifact) -> None:
        self.features.require_input("shards", shards)
        load_frozen_tower(self.features)

    def load(self, device: torch.device, *, compiled: bool = False) -> Predictor:
        return TowerPredictor(self.load_tower(device, compiled=compiled), self.load_head(device))

    def load_tower(self, device: torch.device, *, compiled: bool = False) -> Tower:
        """Load the frozen tower that made the features."""
        tower = load_frozen_tower(self.features)
        prepare_for_inference(tower, tower, device, self.features.config["precision"])
        if compiled:
            compile_for_batches(tower, device)
        return tower

    def reads_features(self, features: Artifact) -> bool:
        return features.inputs["tower"] == self.features.inputs["tower"]

    def load_head(self, device: torch.device) -> "NeighbourPredictor":
        ids, features = read_view(self.features, "train", "plain")
        rows = self.shards.read_tables("train/", ["id", "target"])
        assert ids == rows["id"].to_pylist(), "the features are those of the shards"
        return NeighbourPredictor(features, matrix(rows["target"]), self.neighbours)


class NeighbourPredictor:
    """Prompt vectors from the k training rows with the most similar features.

    The answer is the mean of their targets weighted by cosine, at unit length. Features are scaled
    to unit length but not centred, as in the k-NN evaluations of arXiv 1805.01978 and 2104.14294.
    Cosines below 0 weigh nothing unless all are.

    Args:
        features: of the training rows, (N, D), N >= 1. One row for each picture: with several
            views of a picture, fewer than k pictures would answer.
        targets: unit rows (N, 384).
        neighbours: k; all training rows when there are fewer.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray, neighbours: int) -> None:
        self._index = _index(features, "features")
        self.targets = targets
        self._neighbours = min(neighbours, len(features))

    def predict(self, inputs: Tensor) -> Answers:
        """Answer for features (Q, D)."""
        means, _ = self.neighbourhood(inputs)
        return Answers(at_unit_length(means).astype(np.float32))

    def neighbourhood(self, inputs: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbours' weighted mean target (Q, 384) and mean cosine (Q,) for features.

        The mean is shorter the more the neighbours' prompts differ. Both are NaN for features that
        are not finite, or zero.
        """
        queries = at_unit_length(inputs.float().cpu().numpy()).astype(np.float32)
        known = finite_rows(queries)[:, None]
        queries = np.where(known, queries, np.float32(0))
        means, likeness = [], []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            some = queries[start : start + _QUERIES_AT_ONCE]
            cosines, rows = self._index.search(some, self._neighbours)
            weights = np.maximum(cosines, 1e-6)
            weights /= weights.sum(axis=1, keepdims=True)
            means.append(np.einsum("qk,qkd->qd", weights, self.targets[rows]))
            likeness.append(cosines.mean(axis=1))
        mean = np.where(known, np.concatenate(means), np.nan)
        return mean, np.where(known[:, 0], np.concatenate(likeness), np.nan)


def _index(vectors: np.ndarray, name: str) -> faiss.IndexFlatIP:
    """Build an exact index of rows (N, D) at unit length; `name` names them in errors."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        part = vectors[start : start + _ROWS_AT_ONCE]
        index.add(unit_rows(part, f"{name}[{start}:]").astype(np.float32))
    return index
