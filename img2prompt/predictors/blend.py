"""A weighted mean of several predictors' vectors.

Each member's vectors are scaled to unit length, multiplied by its weights and added. Weights may
differ by dimension. `predict/blend.py` fits them.

Shapes: N pictures, M members.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from img2prompt.artifact import Artifact
from img2prompt.data.vectors import DIMENSIONS
from img2prompt.errors import UserError
from img2prompt.predictors.base import Answers, Predictor, PredictorSpec, at_unit_length
from img2prompt.storage import read_bytes
from img2prompt.workspace import BLEND_WEIGHTS


@dataclass(frozen=True)
class BlendWeights:
    """What members' unit vectors are multiplied by, and what is added to their sum."""

    weights: np.ndarray
    """float32 (M, 384)."""
    offset: np.ndarray
    """float32 (384,)."""

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Return blended unit vectors float32 (N, 384) for those of the members (M, N, 384).

        A row is NaN where the vector of a member is not finite, or zero.
        """
        units = np.stack([at_unit_length(own) for own in vectors])
        blended = np.einsum("mnd,md->nd", units, self.weights) + self.offset
        return at_unit_length(blended).astype(np.float32)


@dataclass(frozen=True)
class BlendedRuns(PredictorSpec):
    """A fitted blend. It answers from cached features when all its members do."""

    blend: Artifact
    members: tuple[PredictorSpec, ...]
    weights: BlendWeights

    def fingerprints(self) -> Mapping[str, str]:
        return {"blend": self.blend.fingerprint}

    def check(self, shards: Artifact) -> None:
        self.blend.require_input("shards", shards)
        for member in self.members:
            member.check(shards)

    def load(self, device: torch.device, *, compiled: bool = False) -> Predictor:
        members = [member.load(device, compiled=compiled) for member in self.members]
        return BlendPredictor(members, self.weights)

    def reads_features(self, features: Artifact) -> bool:
        return all(member.reads_features(features) for member in self.members)

    def load_head(self, device: torch.device) -> Predictor:
        return BlendPredictor([member.load_head(device) for member in self.members], self.weights)


@dataclass(frozen=True)
class BlendPredictor:
    """Members that see the same inputs, and their weights."""

    members: Sequence[Predictor]
    weights: BlendWeights

    def predict(self, inputs: Tensor) -> Answers:
        vectors = np.stack([member.predict(inputs).vectors for member in self.members])
        assert vectors.shape[2] == DIMENSIONS
        return Answers(self.weights.apply(vectors))


def open_blend(blend: Artifact, members: Sequence[PredictorSpec], name: str) -> BlendedRuns:
    """Return a finished blend of its members, in the order of its config.

    Raises:
        UserError: a member is not the one that the weights were fitted for.
    """
    for member in members:
        for key, fingerprint in member.fingerprints().items():
            if blend.inputs.get(f"{key} {member.name}") != fingerprint:
                raise UserError(
                    f"{blend.uri} was fitted for another {member.name!r}: delete it and run "
                    "jobs/blend.py again"
                )
    tensors = safetensors.numpy.load(read_bytes(blend.path(BLEND_WEIGHTS)))
    weights = BlendWeights(tensors["weights"], tensors["offset"])
    return BlendedRuns(blend, tuple(members), weights, name=name)
