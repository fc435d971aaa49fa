"""A probe in closed form: two passes over cached features instead of epochs of AdamW.

The first pass adds up the sums of each fold (`model/heads/ridge.py`). They give the heads of all
strengths, from all rows and without each fold. The second pass scores the heads on rows that they
have not seen: those of the fold that was left out, which choose the strength, and the validation
rows, which are reported as for other runs. Folds consist of whole similarity groups, because near
copies of a prompt in other folds would favour weak strengths.

Files are read one at a time, so memory does not grow with the rows: 12 MB a fold for the sums and
3 MB a fold and strength for the heads, at 1,024 features.
"""

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
from torch import Tensor

from img2prompt.artifact import Artifact
from img2prompt.config.train import OptimConfig
from img2prompt.data.shards import read_feature_file
from img2prompt.errors import UserError
from img2prompt.model.heads.ridge import RidgeHeads, RidgeSums, solve
from img2prompt.train.job import TrainInputs

logger = logging.getLogger(__name__)

T = TypeVar("T")
Files = Sequence[str]
Spread = Callable[[Callable[[Files], T], Sequence[Files]], Iterable[T]]
"""Calls a function for each part of the files and returns the results in order: `map`, or tasks."""

PARTS = 32
"""Most parts of the files, and so most tasks at a time. A constant, so that sums are added in one
order on any cluster. A part's result has the sums of all folds (60 MB at 1,024 features)."""


@dataclass(frozen=True)
class RidgeResult:
    """A solved probe."""

    state: Mapping[str, Tensor]
    """Its learned tensors, by their names in a model."""
    history: Sequence[Mapping[str, float]]
    """`strength`, `fold_cosine` and `val_cosine` of each strength."""
    best: Mapping[str, float]
    """The row of `history` with the highest `fold_cosine`."""


@dataclass(frozen=True)
class FoldedFeatures:
    """Cached features whose training rows are divided into folds."""

    features: Artifact
    shards: Artifact
    fold_of: Mapping[str, int]
    """Fold of each training prompt, by prompt_id."""
    folds: int

    def parts(self, split: str) -> list[Files]:
        """Divide the files of a split into at most PARTS runs of files."""
        names = np.array(self.shards.names(f"{split}/"))
        return [part.tolist() for part in np.array_split(names, min(PARTS, len(names)))]

    def read(self, name: str) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield a file's rows by the fold that holds them out: number, features, targets, plain.

        The number of validation rows is `folds`: no fold holds them. `plain` (B,) is True for rows
        of the view "plain".
        """
        rows = read_feature_file(self.features, self.shards, name)
        if name.startswith("train/"):
            fold = np.array([self.fold_of[prompt_id] for prompt_id in rows.prompt_ids])
        else:
            fold = np.full(len(rows.prompt_ids), self.folds)
        for number in np.unique(fold):
            mine = fold == number
            yield int(number), rows.features[mine], rows.targets[mine], rows.plain[mine]


def solve_probe(config: OptimConfig, inputs: TrainInputs, spread: Spread[Any]) -> RidgeResult:
    """Solve the probes of all strengths; choose the best by the mean cosine of held-out rows.

    Raises:
        UserError: a feature is not finite, or all rows are in one similarity group.
    """
    assert inputs.features is not None
    assert inputs.groups is not None
    fold_of = folds_of_prompts(inputs.groups, config.ridge_folds)
    data = FoldedFeatures(inputs.features, inputs.shards, fold_of, 1 + max(fold_of.values()))
    sums, strengths = _sums(data, spread), config.ridge_strengths
    total = reduce(add, sums)
    _log_rows(total, data.folds, strengths)
    if any(held_out.rows == total.rows for held_out in sums):
        raise UserError(
            f"{inputs.shards.uri} has training pictures of one similarity group only, and ridge "
            "chooses its strength on groups that are held out: use --optim.solver adamw"
        )
    heads = [*(solve(total - held_out, strengths) for held_out in sums), solve(total, strengths)]
    cosines = _cosines(data, heads, spread)
    history = [
        {"strength": strength, "fold_cosine": float(fold), "val_cosine": float(val)}
        for strength, fold, val in zip(strengths, *cosines, strict=True)
    ]
    best = max(range(len(history)), key=lambda number: history[number]["fold_cosine"])
    _log(history, history[best])
    state = {f"head.{name}": tensor for name, tensor in heads[-1].state(best).items()}
    return RidgeResult(state, history, history[best])


def folds_of_prompts(groups: Artifact, most: int) -> dict[str, int]:
    """Return the fold of each training prompt; the prompts of a similarity group share one.

    There are `most` folds, or as many as groups. They have about equally many prompts: the largest
    group goes first, and each goes to the fold with the fewest prompts.
    """
    prompts = groups.read_tables("rows", ["prompt_id", "kept", "group", "split"])
    prompts = prompts.filter((pc.field("split") == "train") & pc.field("kept"))
    labels, number, sizes = np.unique(prompts["group"], return_inverse=True, return_counts=True)
    fold = np.empty(len(labels), np.int64)
    loads = [(0, number) for number in range(min(most, len(labels)))]
    for group in np.argsort(-sizes, kind="stable"):
        load, smallest = heapq.heappop(loads)
        fold[group] = smallest
        heapq.heappush(loads, (load + int(sizes[group]), smallest))
    return dict(zip(prompts["prompt_id"].to_pylist(), fold[number].tolist(), strict=True))


def _sums(data: FoldedFeatures, spread: Spread[list[RidgeSums]]) -> list[RidgeSums]:
    """Return the sums of each fold."""
    parts = spread(partial(_sums_of_files, data), data.parts("train"))
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


def _cosines(
    data: FoldedFeatures, heads: Sequence[RidgeHeads], spread: Spread[np.ndarray]
) -> np.ndarray:
    """Return mean cosines (2, S): of held-out rows by the heads without them, of validation rows.

    `heads` has those without each fold, then those of all rows.
    """
    parts = [*data.parts("train"), *data.parts("val")]
    sums = reduce(add, spread(partial(_cosine_sums_of_files, data, heads), parts))
    return sums[:, :-1] / sums[:, -1:]


def _cosine_sums_of_files(
    data: FoldedFeatures, heads: Sequence[RidgeHeads], files: Files
) -> np.ndarray:
    """Return sums of cosines and, last, the number of rows: (2, S + 1)."""
    sums = np.zeros((2, len(heads[-1].bias) + 1))
    for name in files:
        for number, features, targets, plain in data.read(name):
            scores = heads[number].cosine_sums(features[plain], targets[plain])
            sums[int(number == data.folds)] += [*scores, plain.sum()]
    return sums


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
