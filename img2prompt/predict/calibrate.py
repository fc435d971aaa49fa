"""Fit the confidence of a predictor on the validation split -> runs/<name>/.

The result predicts like a run. The head is a ridge regression from signals of an answer to its
cosine with the true prompt. The reliability is that of folds of prompt groups which the head was
not fitted on.
"""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
import safetensors.numpy
import torch
from scipy.stats import spearmanr

from img2prompt.artifact import Artifact
from img2prompt.config.predict import CalibrateConfig, EvaluateConfig
from img2prompt.data.vectors import matrix
from img2prompt.draft import Draft
from img2prompt.predict import evaluate
from img2prompt.predict.metrics import cosine
from img2prompt.predictors.base import PredictorSpec
from img2prompt.predictors.cached import read_files, read_view
from img2prompt.predictors.confidence import SIGNALS, ConfidenceHead, Novelty, Signals
from img2prompt.predictors.neighbours import NearestNeighbours
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.train.folds import group_folds
from img2prompt.workspace import CONFIDENCE_HEAD, Stage

SPLIT = "val"
PENALTY = 1.0
"""Ridge penalty of standardised signals, whose sums of squares are the number of pictures."""
BINS = 5
KNOWN = 0.99
"""Share of validation pictures that count as pictures like those of training."""
SMALLEST_VARIANCE = 1e-6
"""Least variance of features in a direction, as a share of the largest."""


def run(
    config: CalibrateConfig,
    prepared: PreparedData,
    features: Artifact,
    base: PredictorSpec,
    out: str,
) -> Artifact:
    """Fit the confidence of `base`, and publish it with its reliability.

    Raises UserError for a predictor or features of other shards.
    """
    shards = prepared.shards
    neighbours = NearestNeighbours(features, shards, config.neighbours, name="neighbours")
    inputs = {"shards": shards.fingerprint, **base.fingerprints(), **neighbours.fingerprints()}
    check = functools.partial(_check, shards, base, neighbours)
    draft = Draft.open(out, Stage.CALIBRATION, config, inputs, check, free=("batch_size",))
    if finished := draft.finished():
        return finished
    pictures = evaluate.scored_pictures(prepared, (SPLIT,))
    ids = pictures["id"].to_pylist()
    options = EvaluateConfig(split=SPLIT, batch_size=config.batch_size)
    vectors = evaluate.predict_split(options, shards, features, [base], ids)[base.name]
    signals = _signals(neighbours, vectors, ids)
    cosines = cosine(vectors, matrix(pictures["target"]))
    groups = pictures["group"].to_numpy()
    head = fit_head(signals, cosines)
    novelty, novel = _novelty(features)
    parts = {
        **dataclasses.asdict(head),
        **{f"novelty.{key}": value for key, value in dataclasses.asdict(novelty).items()},
    }
    tensors = {key: np.array(value, order="C") for key, value in parts.items()}
    draft.write_bytes(CONFIDENCE_HEAD, safetensors.numpy.save(tensors))
    return draft.publish(**reliability(config, signals, cosines, groups, novel))


def needs_cluster(shards: Artifact) -> bool:
    """Return True unless there are few validation pictures, which this process answers for."""
    return evaluate.needs_cluster(EvaluateConfig(split=SPLIT), shards)


def _check(shards: Artifact, base: PredictorSpec, neighbours: NearestNeighbours) -> None:
    base.check(shards)
    neighbours.check(shards)


def _signals(neighbours: NearestNeighbours, vectors: np.ndarray, ids: list[str]) -> np.ndarray:
    """Return the signals (N, S) of the vectors (N, 384) of validation pictures."""
    own, rows = read_view(neighbours.features, SPLIT, "plain")
    assert own == ids, "the features are those of the shards"
    head = neighbours.load_head(torch.device("cpu"))
    means, likeness = head.neighbourhood(torch.from_numpy(rows))
    return Signals(head.targets).of(vectors, means, likeness)


def _novelty(features: Artifact) -> tuple[Novelty, np.ndarray]:
    """Return the distance to training pictures, and whether those of validation (N,) are far.

    The limit of the distance is that of KNOWN of the validation pictures.
    """
    _, validation = read_view(features, SPLIT, "plain")
    novelty = fit_novelty(rows for _, rows in read_files(features, "train", "plain"))
    distances = novelty.distances(validation.astype(np.float64))
    limit = float(np.quantile(distances, KNOWN))
    return dataclasses.replace(novelty, limit=limit), distances > limit


def fit_novelty(parts: Iterable[np.ndarray]) -> Novelty:
    """Return the distance to features, given in parts (B, D) of two rows or more, without a limit.

    Sums are added up part by part, so memory is that of one part.
    """
    rows, first, second = 0, np.zeros(()), np.zeros(())
    for part in parts:
        x = part.astype(np.float64)
        rows, first, second = rows + len(x), first + x.sum(axis=0), second + x.T @ x
    mean = first / rows
    covariance = (second - rows * np.outer(mean, mean)) / (rows - 1)
    variances, directions = np.linalg.eigh(covariance)
    floor = SMALLEST_VARIANCE * variances.max()
    return Novelty(mean, directions / np.sqrt(np.maximum(variances, floor)), np.inf)


def fit_head(signals: np.ndarray, cosines: np.ndarray) -> ConfidenceHead:
    """Return the ridge regression from signals (N, S) to cosines (N,)."""
    mean, std = signals.mean(axis=0), signals.std(axis=0)
    scaled = (signals - mean) / np.where(std > 0, std, 1)
    gram = scaled.T @ scaled + PENALTY * np.eye(signals.shape[1])
    weights = np.linalg.solve(gram, scaled.T @ (cosines - cosines.mean()))
    weights /= np.where(std > 0, std, 1)
    bias = float(cosines.mean() - mean @ weights)
    return ConfidenceHead(weights, bias, float(cosines.min()), float(cosines.max()))


def reliability(
    config: CalibrateConfig,
    signals: np.ndarray,
    cosines: np.ndarray,
    groups: np.ndarray,
    novel: np.ndarray,
) -> dict:
    """Return how well confidences of left-out folds agree with the cosines.

    Args:
        config: folds and their seed.
        signals: (N, S).
        cosines: (N,).
        groups: labels (N,); pictures of one group are in one fold.
        novel: which pictures (N,) are unlike the training pictures, and so have the lowest
            confidence, as in predictions.

    Returns:
        `error`, the mean absolute difference; `rank_correlation` (Spearman), and that of the
        nearest prompt's cosine, `rank_correlation_nearest`; `bins` of equally many pictures, the
        least confident first, with the range and mean of confidences and the mean cosine.
    """
    folds = group_folds(groups, config.folds, config.seed)
    confidences = np.empty(len(cosines))
    for fold in np.unique(folds):
        out = folds == fold
        rest = ~out if (~out).any() else out
        head = fit_head(signals[rest], cosines[rest])
        confidences[out] = np.where(novel[out], head.low, head.apply(signals[out]))
    order = np.argsort(confidences, kind="stable")
    nearest = signals[:, SIGNALS.index("cosine to the nearest training prompt")]
    return {
        "error": float(np.abs(confidences - cosines).mean()),
        "rank_correlation": _rank_correlation(confidences, cosines),
        "rank_correlation_nearest": _rank_correlation(nearest, cosines),
        "bins": [
            {
                "low": float(confidences[rows[0]]),
                "high": float(confidences[rows[-1]]),
                "confidence": float(confidences[rows].mean()),
                "cosine": float(cosines[rows].mean()),
                "pictures": len(rows),
            }
            for rows in np.array_split(order, min(BINS, len(order)))
        ],
    }


def _rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Return Spearman's correlation; 0 where one side is constant."""
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(spearmanr(left, right).statistic)


def summary(calibration: Artifact) -> list[list[object]]:
    """Return table rows: the reliability of the confidence, the least confident pictures first."""
    return [
        [
            f"{own['low']:.3f} to {own['high']:.3f}",
            own["confidence"],
            own["cosine"],
            own["pictures"],
        ]
        for own in calibration.counts["bins"]
    ]
