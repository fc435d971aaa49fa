"""Cached features in several files, with similarity groups, that tests write without a cluster."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import FeaturesConfig, GroupConfig, ShardConfig
from img2prompt.data.shards import SCHEMA, read_feature_file
from img2prompt.data.vectors import DIMENSIONS, vector_column
from img2prompt.draft import Draft
from img2prompt.train.job import TrainInputs

WIDTH, PROMPTS = 10, 30
FILES = {"train": (40, 7, 43), "val": (11,), "test": (6,)}
"""Rows of each file."""


def prompt(split: str, row: int) -> str:
    """Rows of a prompt are scattered over the files."""
    return f"{split}-{row % PROMPTS}"


def write(folder: Path, seed: int = 0, views: Sequence[str] = ("plain",)) -> TrainInputs:
    """Random features, and targets that depend on them and on the prompt."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(WIDTH, DIMENSIONS))
    shards = Draft.open(str(folder / "shards"), "shards", ShardConfig(size=32), {})
    features = Draft.open(str(folder / "features"), "features", FeaturesConfig(), {})
    for split, files in FILES.items():
        own = rng.normal(size=(PROMPTS, WIDTH)), rng.normal(size=(PROMPTS, DIMENSIONS))
        for number, (start, stop) in enumerate(pairwise(np.cumsum([0, *files]))):
            rows = np.arange(start, stop)
            ids = [f"{split}/{row}" for row in rows]
            prompts = [prompt(split, row) for row in rows]
            x = 5 + own[0][rows % PROMPTS] + rng.normal(size=(len(rows), WIDTH))
            y = own[0][rows % PROMPTS] @ mixing + 2 * own[1][rows % PROMPTS]
            y /= np.linalg.norm(y, axis=1, keepdims=True)
            columns = [ids, prompts, ids, [b""] * len(rows), vector_column(y)]
            name = f"{split}/{number:05d}.parquet"
            shards.write_table(name, pa.table(columns, schema=SCHEMA))
            noisy = [x + at * rng.normal(size=x.shape) for at in range(len(views))]
            columns = {
                "id": ids * len(views),
                "view": np.repeat(np.array(views), len(rows)),
                "feature": vector_column(np.concatenate(noisy), np.float16),
            }
            features.write_table(name, pa.table(columns))
    groups = write_groups(folder, [number // 2 for number in range(PROMPTS)])
    return TrainInputs(shards.publish(train=90), features.publish(), groups=groups)


def write_groups(folder: Path, labels: Sequence[int]) -> Artifact:
    """Groups of the training prompts by their labels, of other prompts, and a dropped prompt."""
    counts = {"train": len(labels), "val": sum(FILES["val"]), "test": sum(FILES["test"])}
    ids = [f"{split}-{number}" for split, count in counts.items() for number in range(count)]
    others = range(900, 900 + len(ids) - len(labels))
    columns = {
        "prompt_id": [*ids, "dropped"],
        "kept": [True] * len(ids) + [False],
        "group": [*labels, *others, 0],
        "split": [split for split, count in counts.items() for _ in range(count)] + ["train"],
    }
    draft = Draft.open(str(folder / f"groups{len(set(labels))}"), "groups", GroupConfig(), {})
    draft.write_table("rows-00000.parquet", pa.table(columns))
    return draft.publish()


def rows_of(inputs: TrainInputs, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, targets and prompts of all rows of the view "plain"."""
    assert inputs.features is not None
    parts = []
    for name in inputs.features.names(f"{split}/"):
        rows = read_feature_file(inputs.features, inputs.shards, name)
        parts.append((rows.features, rows.targets, np.array(rows.prompt_ids)))
        parts[-1] = tuple(array[rows.plain] for array in parts[-1])
    x, y, prompts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return x.astype(np.float64), y.astype(np.float64), prompts
