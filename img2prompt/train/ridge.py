"""A probe in closed form: two passes over cached features instead of epochs of AdamW.

The first pass adds up the sums of each fold (`model/heads/ridge.py`). They give the heads of all
strengths, from all rows and without each fold. The second pass scores the heads on rows that they
have not seen: those of the fold that was left out, which choose the strength, and the validation
rows, which are reported as for other runs. `solve_by_fold` solves a probe without each fold, for
cross-validation.

Files are read one at a time, so memory does not grow with the rows: 12 MB a fold for the sums and
3 MB a fold and strength for the heads, at 1,024 features.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import combinations
from operator import add
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from img2prompt.config.train import OptimConfig
from img2prompt.errors import UserError
from img2prompt.model.heads.ridge import RidgeHeads, RidgeSums, solve
from img2prompt.train.folds import Files, FoldedFeatures, folds_of_prompts
from img2prompt.train.job import TrainInputs

logger = logging.getLogger(__name__)

T = TypeVar("T")
Spread = Callable[[Callable[[Files], T], Sequence[Files]], Iterable[T]]
"""Calls a function for each part of the files and returns the results in order: `map`, or tasks."""


@dataclass(frozen=True)
class RidgeResult:
    """A solved probe."""

    state: Mapping[str, Tensor]
    """Its learned tensors, by their names in a model."""
    history: Sequence[Mapping[str, float]]
    """`strength`, `fold_cosine` and `val_cosine` of each strength."""
    best: Mapping[str, float]
    """The row of `history` with the highest `fold_cosine`."""


def solve_probe(config: OptimConfig, inputs: TrainInputs, spread: Spread[Any]) -> RidgeResult:
    """Solve the probes of all strengths; choose the best by the mean cosine of held-out rows.

    Raises:
        UserError: a feature is not finite, or all rows are in one similarity group.
    """
    assert inputs.features is not None
    assert inputs.groups is not None
    fold_of = folds_of_prompts(inputs.groups, config.ridge_folds)
    data = FoldedFeatures(inputs.features, inputs.shards, fold_of, 1 + max(fold_of.values()))
    sums, strengths = _sums(data, ("train",), spread), config.ridge_strengths
    total = reduce(add, sums)
    _log_rows(total, data.folds, strengths)
    if any(held_out.rows == total.rows for held_out in sums):
        raise UserError(
            f"{data.shards.uri} has training pictures of one similarity group only, and ridge "
            "chooses its strength on groups that are held out: use --optim.solver adamw"
        )
    heads = {fold: solve(total - held_out, strengths) for fold, held_out in enumerate(sums)}
    heads[data.folds] = solve(total, strengths)
    cosines = _cosine_sums(data, ("train", "val"), heads, spread)
    fold, val = _means(cosines[:-1].sum(axis=0)), _means(cosines[-1])
    history = [
        {"strength": strength, "fold_cosine": float(of_folds), "val_cosine": float(of_val)}
        for strength, of_folds, of_val in zip(strengths, fold, val, strict=True)
    ]
    best = int(np.argmax(fold))
    _log(history, history[best])
    return RidgeResult(_state(heads[data.folds], best), history, history[best])


def solve_by_fold(
    strengths: Sequence[float], data: FoldedFeatures, splits: Sequence[str], spread: Spread[Any]
) -> list[dict[str, Tensor]]:
    """Solve, for each fold, the probe that has not seen it; return their learned tensors.

    Its strength is the best for rows of the other folds by heads that have not seen their fold
    either (nested cross-validation). A head without two folds serves both.

    Raises:
        UserError: a feature is not finite.
    """
    assert data.folds > 2, "two folds leave none to choose a strength on"
    sums = _sums(data, splits, spread)
    total = reduce(add, sums)
    inner = np.zeros((data.folds, len(strengths) + 1))
    for one, other in combinations(range(data.folds), 2):
        heads = solve(total - sums[one] - sums[other], strengths)
        cosines = _cosine_sums(data, splits, {one: heads, other: heads}, spread)
        inner[one] += cosines[other]
        inner[other] += cosines[one]
    states = []
    for fold, held_out in enumerate(sums):
        strength = strengths[int(np.argmax(_means(inner[fold])))]
        logger.info("ridge: strength %g without fold %d", strength, fold + 1)
        states.append(_state(solve(total - held_out, [strength]), 0))
    return states


def _state(heads: RidgeHeads, number: int) -> dict[str, Tensor]:
    return {f"head.{name}": tensor for name, tensor in heads.state(number).items()}


def _sums(
    data: FoldedFeatures, splits: Sequence[str], spread: Spread[list[RidgeSums]]
) -> list[RidgeSums]:
    """Return the sums of each fold. All rows of the splits belong to a fold."""
    parts = spread(partial(_sums_of_files, data), data.parts(splits))
    return reduce(lambda left, right: [a + b for a, b in zip(left, right, strict=True)], parts)


def _sums_of_files(data: FoldedFeatures, files: Files) -> list[RidgeSums]:
    sums: list[RidgeSums | None] = [None] * data.folds
    empty = None
    for name in files:
        for number, features, targets, _ in data.read(name):
            block = RidgeSums.over(features, targets)
            known = sums[number]
            sums[number] = block if known is None else known + block
            empty = empty or block - block
    assert empty is not None, "every file has rows"
    return [fold if fold is not None else empty for fold in sums]


def _cosine_sums(
    data: FoldedFeatures,
    splits: Sequence[str],
    heads: Mapping[int, RidgeHeads],
    spread: Spread[np.ndarray],
) -> np.ndarray:
    """Return sums of cosines over the rows of each fold, and their number: (folds + 1, S + 1).

    Rows of a fold are scored by its `heads`; those of folds without heads are left out. The last
    fold has the rows that are in no fold.
    """
    parts = spread(partial(_cosine_sums_of_files, data, heads), data.parts(splits))
    return reduce(add, parts)


def _cosine_sums_of_files(
    data: FoldedFeatures, heads: Mapping[int, RidgeHeads], files: Files
) -> np.ndarray:
    (strengths,) = {len(own.bias) for own in heads.values()}
    sums = np.zeros((data.folds + 1, strengths + 1))
    for name in files:
        for number, features, targets, plain in data.read(name):
            if number in heads:
                scores = heads[number].cosine_sums(features[plain], targets[plain])
                sums[number] += [*scores, plain.sum()]
    return sums


def _means(sums: np.ndarray) -> np.ndarray:
    """Return mean cosines (S,) from their sums and, last, the number of rows."""
    return sums[:-1] / sums[-1]


def _log_rows(total: RidgeSums, folds: int, strengths: Sequence[float]) -> None:
    logger.info(
        "ridge: %d rows of %d features, in %d folds; %d strengths",
        total.rows,
        len(total.x),
        folds,
        len(strengths),
    )


def _log(history: Sequence[Mapping[str, float]], best: Mapping[str, float]) -> None:
    for row in history:
        logger.info(
            "strength %g: held-out cosine %.4f, val cosine %.4f",
            *(row[name] for name in ("strength", "fold_cosine", "val_cosine")),
        )
    strengths = [row["strength"] for row in history]
    if len(strengths) > 1 and best["strength"] in (min(strengths), max(strengths)):
        logger.warning(
            "the best strength, %g, is at the end of optim.ridge_strengths: try others beyond it",
            best["strength"],
        )
