"""Fit a blend of predictors on the validation split -> runs/<name>/, a predictor like a run.

Weights maximise the mean cosine itself. They are fitted on folds of prompt groups and scored on the
pictures that a fold left out: fitted weights are kept only if they beat equal weights there by more
than the noise, and each member's gain is the score with it minus the score without it.
`blend.safetensors` holds the weights, and the manifest counts the scores.

Shapes: N pictures, M members, D = 384.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import safetensors.numpy
from scipy.optimize import minimize

from img2prompt.artifact import Artifact
from img2prompt.config.predict import BlendConfig, EvaluateConfig
from img2prompt.data.vectors import DIMENSIONS, matrix, unit_rows
from img2prompt.draft import Draft
from img2prompt.predict import evaluate
from img2prompt.predict.metrics import Score, cosine, mean_cosine_interval
from img2prompt.predictors.base import PredictorSpec
from img2prompt.predictors.blend import BlendWeights
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.train.folds import group_folds
from img2prompt.workspace import BLEND_WEIGHTS, Stage

SPLIT = "val"
SMALLEST_STD = 1e-6
"""Least standard deviation that a member's dimension is divided by."""

Fit = Callable[[np.ndarray, np.ndarray], BlendWeights]
"""From unit vectors (M, N, D) and unit targets (N, D) to weights."""


def run(
    config: BlendConfig,
    prepared: PreparedData,
    features: Artifact,
    members: Sequence[PredictorSpec],
    out: str,
) -> Artifact:
    """Fit the weights of the members, and publish them with their scores.

    Raises UserError for members of other shards.
    """
    assert tuple(member.name for member in members) == config.runs
    shards = prepared.shards
    inputs = {
        "shards": shards.fingerprint,
        **{f"{key} {m.name}": value for m in members for key, value in m.fingerprints().items()},
    }
    check = functools.partial(_check, shards, features, members)
    draft = Draft.open(out, Stage.BLEND, config, inputs, check, free=("batch_size",))
    if finished := draft.finished():
        return finished
    pictures = evaluate.scored_pictures(prepared, (SPLIT,))
    options = EvaluateConfig(split=SPLIT, batch_size=config.batch_size, views=config.views)
    predicted = evaluate.predict_split(
        options, shards, features, members, pictures["id"].to_pylist()
    )
    vectors = np.stack([unit_rows(predicted[member.name]) for member in members])
    targets = unit_rows(matrix(pictures["target"]))
    weights, scores = choose_weights(config, vectors, targets, pictures["group"].to_numpy())
    names = [member.name for member in members]
    content = safetensors.numpy.save({"weights": weights.weights, "offset": weights.offset})
    draft.write_bytes(BLEND_WEIGHTS, content)
    return draft.publish(members=dict(zip(names, scores.pop("members"), strict=True)), **scores)


def needs_cluster(shards: Artifact) -> bool:
    """Return True unless there are few validation pictures, which this process answers for."""
    return evaluate.needs_cluster(EvaluateConfig(split=SPLIT), shards)


def _check(shards: Artifact, features: Artifact, members: Sequence[PredictorSpec]) -> None:
    features.require_input("shards", shards)
    for member in members:
        member.check(shards)


def choose_weights(
    config: BlendConfig, vectors: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> tuple[BlendWeights, dict]:
    """Return fitted weights, or equal ones where the gain of fitting is within the noise.

    Args:
        config: how weights are fitted.
        vectors: unit vectors (M, N, D) of the members for the same pictures in the same order.
        targets: unit vectors (N, D) of the true prompts.
        groups: labels (N,); pictures of one group are in one fold.

    Returns:
        The weights, and scores on left-out folds: `blend` and `equal`; `fitted_gain` over equal
        weights; `fitted`, whether fitted weights were taken; and for each of `members` its mean
        weight, its score alone, and its gain.

    Raises:
        ValueError: vectors are not for the same pictures as the targets.
    """
    if vectors.shape[1:] != targets.shape or len(groups) != len(targets):
        raise ValueError(
            f"vectors {vectors.shape}, targets {targets.shape} and groups {groups.shape} are not "
            "for the same pictures"
        )
    equal = functools.partial(equal_weights, scale=config.scale)
    fitted = functools.partial(fit_weights, scale=config.scale, per=config.per)
    folds = group_folds(groups, config.folds, config.seed)
    score = functools.partial(_left_out_cosines, targets=targets, folds=folds)

    def interval(cosines: np.ndarray, limit: float = 1.0) -> Score:
        return mean_cosine_interval(cosines, groups, limit)

    by_equal, by_fitted = score(equal, vectors), score(fitted, vectors)
    gain = interval(by_fitted - by_equal, limit=2.0)
    fit, cosines = (fitted, by_fitted) if gain.low > 0 else (equal, by_equal)
    weights = fit(vectors, targets)
    members = [
        {
            "weight": float(weights.weights[number].mean()),
            "alone": dataclasses.asdict(interval(cosine(own, targets))),
            "gain": dataclasses.asdict(
                interval(cosines - score(fit, np.delete(vectors, number, axis=0)), limit=2.0)
            ),
        }
        for number, own in enumerate(vectors)
    ]
    return weights, {
        "members": members,
        "blend": dataclasses.asdict(interval(cosines)),
        "equal": dataclasses.asdict(interval(by_equal)),
        "fitted_gain": dataclasses.asdict(gain),
        "fitted": fit is fitted,
    }


def _left_out_cosines(
    fit: Fit, vectors: np.ndarray, targets: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """Return the cosine (N,) of each picture under weights fitted on the other folds."""
    cosines = np.empty(len(targets))
    for fold in np.unique(folds):
        out = folds == fold
        rest = ~out if (~out).any() else out
        weights = fit(vectors[:, rest], targets[rest])
        cosines[out] = cosine(weights.apply(vectors[:, out]), targets[out])
    return cosines


def equal_weights(vectors: np.ndarray, targets: np.ndarray, scale: str) -> BlendWeights:
    """Return weights 1 / M for each member."""
    return _weighted(
        np.full((len(vectors), 1), 1 / len(vectors)), *_scaling(vectors, targets, scale)
    )


def fit_weights(vectors: np.ndarray, targets: np.ndarray, scale: str, per: str) -> BlendWeights:
    """Return the weights, none below 0, with the highest mean cosine (L-BFGS-B).

    Weights sum to 1 over the members: one for each member, or one for each member and dimension.
    """
    factors, shifts = _scaling(vectors, targets, scale)
    scaled = vectors * factors[:, None] + shifts[:, None]
    shape = (len(vectors), DIMENSIONS if per == "dimension" else 1)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        blended = np.einsum("mnd,md->nd", scaled, np.broadcast_to(weights, factors.shape))
        length = np.linalg.norm(blended, axis=1, keepdims=True)
        cosines = np.sum(blended * targets, axis=1, keepdims=True) / length
        slope = (targets - cosines * blended / length) / length / len(targets)
        by_dimension = np.einsum("mnd,nd->md", scaled, slope)
        gradient = by_dimension.sum(axis=1, keepdims=True) if per == "member" else by_dimension
        return -float(cosines.mean()), -gradient.ravel()

    start = np.full(shape, 1 / len(vectors))
    bounds = [(0, None)] * start.size
    best = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", bounds=bounds)
    weights = best.x.reshape(shape)
    return _weighted(weights / weights.sum(axis=0).mean(), factors, shifts)


def _scaling(vectors: np.ndarray, targets: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """Return factors and shifts (M, D) that are applied to unit vectors.

    `unit` changes nothing; `standard` gives each dimension the mean and deviation of the targets.
    """
    if scale == "unit":
        return np.ones((len(vectors), DIMENSIONS)), np.zeros((len(vectors), DIMENSIONS))
    factors = targets.std(axis=0) / np.maximum(vectors.std(axis=1), SMALLEST_STD)
    return factors, targets.mean(axis=0) - vectors.mean(axis=1) * factors


def _weighted(weights: np.ndarray, factors: np.ndarray, shifts: np.ndarray) -> BlendWeights:
    offset = np.sum(weights * shifts, axis=0)
    return BlendWeights((weights * factors).astype(np.float32), offset.astype(np.float32))


def summary(blend: Artifact) -> list[list[object]]:
    """Return table rows: the blend, and each member's weight, score alone, and gain."""
    counts = blend.counts
    kind = "fitted weights" if counts["fitted"] else "equal weights"
    rows = [[f"{blend.config['name']} ({kind})", "", counts["blend"]["mean"], ""]]
    for name, member in counts["members"].items():
        gain = member["gain"]
        text = f"{gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
        rows.append([name, member["weight"], member["alone"]["mean"], text])
    return rows
