"""Cached features whose rows are divided into folds of whole similarity groups.

Near copies of a prompt in another fold would favour heads that remember, so a group is in one fold.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow.compute as pc

from img2prompt.artifact import Artifact
from img2prompt.data.shards import read_feature_file

Files = Sequence[str]

PARTS = 32
"""Most parts of the files, and so most tasks at a time. A constant, so that sums are added in one
order on any cluster. A part's result has the sums of all folds (60 MB at 1,024 features)."""


def folds_of_prompts(
    groups: Artifact, most: int, splits: Sequence[str] = ("train",), seed: int | None = None
) -> dict[str, int]:
    """Return the fold of each prompt of the splits; the prompts of a similarity group share one.

    They are those of `group_folds`.
    """
    prompts = groups.read_tables("rows", ["prompt_id", "kept", "group", "split"])
    prompts = prompts.filter(pc.field("split").isin(list(splits)) & pc.field("kept"))
    fold = group_folds(prompts["group"].to_numpy(), most, seed)
    return dict(zip(prompts["prompt_id"].to_pylist(), fold.tolist(), strict=True))


def group_folds(groups: np.ndarray, most: int, seed: int | None = None) -> np.ndarray:
    """Return the fold (N,) of each row by its group's label (N,); the rows of a group share one.

    There are `most` folds, or as many as groups. They have about equally many rows: the largest
    group goes first, and each goes to the fold with the fewest rows. `seed` shuffles groups of one
    size.
    """
    labels, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.arange(len(labels))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    fold = np.empty(len(labels), np.int64)
    loads = [(0, number) for number in range(min(most, len(labels)))]
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        load, smallest = heapq.heappop(loads)
        fold[group] = smallest
        heapq.heappush(loads, (load + int(sizes[group]), smallest))
    return fold[number]


@dataclass(frozen=True)
class FoldedFeatures:
    """Cached features by fold. Plain data, so it can be sent to tasks."""

    features: Artifact
    shards: Artifact
    fold_of: Mapping[str, int]
    """Fold of each prompt, by prompt_id. Other prompts belong to no fold."""
    folds: int

    def parts(self, splits: Iterable[str]) -> list[Files]:
        """Divide the files of each split into at most PARTS runs of files.

        A shard whose pictures were all rejected has no rows, and no file of features.
        """
        parts = []
        for split in splits:
            names = [
                name for name in self.shards.names(f"{split}/") if self.shards.files[name].rows
            ]
            ends = np.linspace(0, len(names), min(PARTS, len(names)) + 1).astype(int)
            parts += [names[start:end] for start, end in pairwise(ends)]
        return parts

    def read(self, name: str) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield a file's rows by the fold that holds them out: number, features, targets, plain.

        The number of rows that belong to no fold is `folds`. `plain` (B,) is True for rows of the
        view "plain".
        """
        rows = read_feature_file(self.features, self.shards, name)
        fold = np.array([self.fold_of.get(prompt_id, self.folds) for prompt_id in rows.prompt_ids])
        for number in np.unique(fold):
            mine = fold == number
            yield int(number), rows.features[mine], rows.targets[mine], rows.plain[mine]
