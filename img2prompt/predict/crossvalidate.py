"""Grouped cross-validation: each picture of all splits is predicted by heads that never saw it.

Pictures are divided into folds of whole similarity groups. The baselines and each probe learn from
all folds but one and answer for that one, so a small data set is scored on all of its pictures. No
tower runs: everything reads the cached features.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from img2prompt.artifact import Artifact
from img2prompt.config.predict import EvaluateConfig
from img2prompt.data.shards import SPLITS
from img2prompt.data.vectors import matrix
from img2prompt.errors import UserError
from img2prompt.predictors.base import ModulePredictor, Predictor, PredictorSpec, average_views
from img2prompt.predictors.cached import has_views, read_view
from img2prompt.predictors.mean import ConstantPredictor, MeanVector
from img2prompt.predictors.neighbours import NearestNeighbours, NeighbourPredictor
from img2prompt.predictors.trained import TrainedRun
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.train.fold_probes import probes_by_fold
from img2prompt.train.folds import FoldedFeatures, folds_of_prompts

FEWEST_GROUPS = 3
"""One group to answer for, and two to learn from, of which one is held out to choose a strength."""


class CrossValidation:
    """Folds of the pictures of all splits, and answers for each fold from the others.

    `pictures` is a table with the columns `prompt_id` and `target`, in the order of the features.
    """

    def __init__(
        self, config: EvaluateConfig, prepared: PreparedData, features: Artifact, pictures: pa.Table
    ) -> None:
        fold_of = folds_of_prompts(prepared.groups, config.folds, SPLITS, config.seed)
        folds = 1 + max(fold_of.values())
        if folds < FEWEST_GROUPS:
            raise UserError(
                f"{prepared.groups.uri} has {folds} similarity groups; cross-validation needs "
                f"{FEWEST_GROUPS} or more: use folds 0"
            )
        self._config = config
        self._features = features
        self._data = FoldedFeatures(features, prepared.shards, fold_of, folds)
        prompt_ids = pictures["prompt_id"].to_pylist()
        self._fold = np.array([fold_of[prompt_id] for prompt_id in prompt_ids])
        self._targets = matrix(pictures["target"])
        self._views = [_read_splits(features, view) for view in config.views]

    def predict(self, spec: PredictorSpec) -> np.ndarray:
        """Return vectors (N, 384): each picture's from the predictor that never saw its fold."""
        vectors = np.empty(self._targets.shape, np.float32)
        for fold, predictor in enumerate(self._predictors(spec)):
            mine = self._fold == fold
            if not mine.any():  # its prompts have no picture in the shards
                continue
            inputs = [torch.from_numpy(view[mine]).float() for view in self._views]
            with torch.inference_mode():
                vectors[mine] = average_views([predictor.predict(rows) for rows in inputs]).vectors
        return vectors

    def _predictors(self, spec: PredictorSpec) -> Sequence[Predictor]:
        """Return, for each fold, the predictor of this kind that learned from the others."""
        others = [self._fold != fold for fold in range(self._data.folds)]
        match spec:
            case MeanVector():
                return [ConstantPredictor(self._targets[rows].mean(axis=0)) for rows in others]
            case NearestNeighbours(neighbours=neighbours):
                plain = _read_splits(self._features, "plain")
                return [
                    NeighbourPredictor(plain[rows], self._targets[rows], neighbours)
                    for rows in others
                ]
            case TrainedRun():
                width = self._views[0].shape[1]
                probes = probes_by_fold(spec.config, self._data, width)
                return [ModulePredictor(probe) for probe in probes]
        raise AssertionError(f"check_folds allows {spec.name}")


def check_folds(
    config: EvaluateConfig, features: Artifact, predictors: Sequence[PredictorSpec]
) -> None:
    """Refuse (UserError) predictors or views that cannot be cross-validated on these features."""
    if not has_views(features, config.views):
        raise UserError(
            f"views are {', '.join(config.views)}; allowed with folds: those of {features.uri}, "
            f"{', '.join(features.config['views'])}"
        )
    for spec in predictors:
        if not isinstance(spec, MeanVector | NearestNeighbours | TrainedRun):
            raise UserError(
                f"{spec.name} is a predictor that folds do not fit anew, such as a blend or a "
                "calibrated run; allowed with folds: probes, neighbours and mean: name them with "
                "--runs"
            )
        if not spec.reads_features(features):
            raise UserError(
                f"{spec.name} does not answer from {features.uri}: it trains its tower, or has "
                "another one. Folds are for probes on these features: name them with --runs"
            )


def _read_splits(features: Artifact, view: str) -> np.ndarray:
    """Return the features (N, D) of all pictures in one view, one split after the other."""
    return np.concatenate([read_view(features, split, view)[1] for split in SPLITS])
