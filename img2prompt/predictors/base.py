"""The predictor seam: pictures in, prompt vectors and what else is known about the prompt out.

A `PredictorSpec` describes a predictor cheaply. It travels to an actor, which loads the predictor
there. A new way to answer is one file with a spec and its predictor.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from img2prompt.artifact import Artifact
from img2prompt.data.vectors import DIMENSIONS


@dataclass(frozen=True)
class Answers:
    """Answers for N pictures.

    Raises:
        ValueError: the parts are for different numbers of pictures.
    """

    vectors: np.ndarray
    """Prompt vectors float32 (N, 384), of any length above 0."""
    texts: Sequence[str] | None = None
    """A prompt for each picture, from predictors that write one."""
    confidences: np.ndarray | None = None
    """How sure the predictor is of each answer, float (N,), from predictors that know."""

    def __post_init__(self) -> None:
        rows = len(self.vectors)
        if self.vectors.shape != (rows, DIMENSIONS):
            raise ValueError(f"vectors have shape {self.vectors.shape}; allowed: (N, {DIMENSIONS})")
        if self.texts is not None and len(self.texts) != rows:
            raise ValueError(f"{len(self.texts)} texts for {rows} vectors")
        if self.confidences is not None and self.confidences.shape != (rows,):
            raise ValueError(f"confidences have shape {self.confidences.shape}; allowed: ({rows},)")


class Predictor(Protocol):
    """A loaded predictor."""

    def predict(self, inputs: Tensor) -> Answers:
        """Answer for N inputs on the predictor's device.

        Inputs are pictures uint8 (N, S, S, 3), or, for a predictor that `load_head` returned,
        features of its frozen tower, float (N, D).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PredictorSpec(ABC):
    """A predictor that is not loaded yet. Subclasses are frozen dataclasses that pickle."""

    name: str
    """Name in tables of scores; unique among the predictors of one evaluation."""

    @abstractmethod
    def fingerprints(self) -> Mapping[str, str]:
        """Return what the answers depend on besides shards, for manifests: name to fingerprint."""

    @abstractmethod
    def check(self, shards: Artifact) -> None:
        """Refuse early what would fail in an actor, or was made from other shards (UserError)."""

    @abstractmethod
    def load(self, device: torch.device, *, compiled: bool = False) -> Predictor:
        """Load a predictor of pictures onto a device.

        `compiled`: many batches of one shape will follow, so a GPU may compile the model.
        """

    def has_confidences(self) -> bool:
        """Return True when the answers have confidences."""
        return False

    def reads_features(self, features: Artifact) -> bool:
        """Return True when these cached features of a picture can replace the picture."""
        return False

    def load_head(self, device: torch.device) -> Predictor:
        """Load the part that answers from features, for specs that may read them."""
        raise NotImplementedError(f"{self.name} does not answer from features")


@dataclass(frozen=True)
class ModulePredictor:
    """A torch module, which holds its weights on one device, as a predictor of vectors."""

    module: nn.Module

    def predict(self, inputs: Tensor) -> Answers:
        return Answers(self.module(inputs).float().cpu().numpy())


@dataclass(frozen=True)
class TowerPredictor:
    """A frozen tower before a predictor of its features: together a predictor of pictures."""

    tower: nn.Module
    head: Predictor

    def predict(self, inputs: Tensor) -> Answers:
        return self.head.predict(self.tower(inputs))


def concatenate(parts: Sequence[Answers]) -> Answers:
    """Join the answers of one predictor for consecutive pictures; `parts` is not empty."""
    texts = [part.texts for part in parts if part.texts is not None]
    confidences = [part.confidences for part in parts if part.confidences is not None]
    return Answers(
        np.concatenate([part.vectors for part in parts]),
        list(itertools.chain.from_iterable(texts)) if texts else None,
        np.concatenate(confidences) if confidences else None,
    )


def average_views(views: Sequence[Answers]) -> Answers:
    """Return one answer for each picture from the answers for its views (test-time augmentation).

    Vectors are the mean of the vectors at unit length; NaN where that of a view is not finite. The
    text and the confidence are those of the view with the highest confidence, or of the first view
    where confidences are missing.
    A single view is returned as it is.
    """
    first = views[0]
    if len(views) == 1:
        return first
    mean = np.mean([at_unit_length(view.vectors) for view in views], axis=0).astype(np.float32)
    averaged = replace(first, vectors=mean)
    confidences = [view.confidences for view in views if view.confidences is not None]
    if len(confidences) < len(views):
        return averaged
    best = np.argmax(confidences, axis=0)
    texts = [view.texts for view in views if view.texts is not None]
    if len(texts) == len(views):
        averaged = replace(averaged, texts=[texts[view][row] for row, view in enumerate(best)])
    return replace(averaged, confidences=np.max(confidences, axis=0))


def at_unit_length(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (N, D) at unit length as float64; NaN for those that have none."""
    vectors = vectors.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
