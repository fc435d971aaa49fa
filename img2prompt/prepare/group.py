"""targets/ -> groups/: near duplicates and the split.

`rows-00000.parquet` has one row per prompt, `leaks.json` the most similar prompts across splits.
Among near duplicates the first one in the order of the targets is kept. Similar kept prompts share
a group, and with it a split. A dropped prompt has the group and split of its keeper. Only kept
prompts are used for training and scoring: a dropped one may be near prompts of other splits.

Memory: the driver has up to four copies of the vectors (1.5 KB a prompt), and 6.5 KB a prompt in
the leak report: 12 GB for 1.8 million prompts (computed from the arrays, not measured).
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import GroupConfig
from img2prompt.data.shards import SPLITS
from img2prompt.data.similar.dedupe import KeepFirst, keep_first
from img2prompt.data.similar.matches import MatchTask
from img2prompt.data.similar.split import HELD_OUT, assign, components, leak_report
from img2prompt.data.vectors import matrix
from img2prompt.distributed import cluster
from img2prompt.distributed.tasks import run_bounded
from img2prompt.draft import Draft
from img2prompt.workspace import Stage

logger = logging.getLogger(__name__)

LEAKS = "leaks.json"
SPREAD_ROWS = 200_000
"""Prompts from which on workers share the comparisons; fewer take 7 seconds on two cores."""

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("keeper", pa.string()),
        ("score", pa.float64()),
        ("kept", pa.bool_()),
        ("group", pa.int64()),
        ("split", pa.string()),
    ]
)
"""`keeper`: prompt_id of the kept prompt that represents this one (its own when it is kept).
`score`: cosine to the keeper."""


def run(config: GroupConfig, targets: Artifact, out: str) -> Artifact:
    """Remove near duplicates among the prompts of the targets, group them and split the groups.

    Counts `prompts`, `kept`, `dropped`, `groups`, `largest_group` (kept prompts), `kept_by_split`,
    `pictures_by_split` (of kept prompts), and the largest `train_to_val` and `train_to_test`
    cosine.
    """
    draft = Draft.open(out, Stage.GROUPS, config, {"targets": targets.fingerprint})
    if finished := draft.finished():
        return finished
    prompts = targets.read_tables("rows", ["prompt_id", "prompt", "pictures", "target"])
    vectors = matrix(prompts["target"])
    prompts = prompts.drop_columns(["target"])  # a second copy of the vectors
    spread = partial(on_cluster, prompts=len(vectors))
    unique = spread(keep_first)(vectors, config.duplicate_cosine)
    logger.info("groups: %d of %d prompts kept", len(unique.kept), len(vectors))
    labels = spread(components)(vectors[unique.kept], config.split_cosine)
    pictures = prompts["pictures"].to_numpy()[unique.kept]
    split = assign(labels, pictures, config.val_fraction, config.test_fraction, config.seed)
    draft.write_table("rows-00000.parquet", _table(prompts["prompt_id"], unique, labels, split))
    texts = prompts["prompt"].take(pa.array(unique.kept))
    leaks = _leaks(spread(leak_report), vectors, texts, unique.kept, split)
    draft.write_bytes(LEAKS, json.dumps(leaks, indent=2).encode())
    counts = _counts(unique, labels, split, pictures)
    logger.info("groups: %s", counts)
    return draft.publish(
        **counts, **{f"train_to_{name}": leaks[name]["largest_cosine"] for name in HELD_OUT}
    )


def on_cluster(compare: Callable[..., Any], prompts: int) -> Callable[..., Any]:
    """Return a function that compares vectors where that is fastest, with the same result.

    In this process when there are few vectors or it has a GPU; else on a worker with a GPU; else
    its tasks on all CPU workers.
    """
    if prompts < SPREAD_ROWS or torch.cuda.is_available() or not ray.is_initialized():
        return compare
    if cluster.resources().gpus:
        on_gpu = ray.remote(num_gpus=1)(compare)
        return lambda *arguments: ray.get(on_gpu.remote(*arguments))
    return partial(compare, spread=over_workers)


def over_workers(
    function: Callable[[MatchTask], Any],
) -> Callable[[Iterable[MatchTask]], Iterator[Any]]:
    """Return a function that calls `function` in a Ray task for each match task.

    `function`, with the vectors that it holds, is sent once to each machine.
    """
    shared = ray.put(function)

    def call_all(tasks: Iterable[MatchTask]) -> Iterator[Any]:
        started = (_call.remote(shared, task) for task in tasks)
        return run_bounded(started, cluster.resources().cpus)

    return call_all


@ray.remote
def _call(function: Callable[[MatchTask], Any], task: MatchTask) -> Any:
    return function(task)


def _table(
    prompt_ids: pa.ChunkedArray, unique: KeepFirst, labels: np.ndarray, split: np.ndarray
) -> pa.Table:
    """Return a row for every prompt; `labels` and `split` have one entry for each kept prompt."""
    numbers = np.arange(len(unique.keeper))
    keeper = np.searchsorted(unique.kept, unique.keeper)
    columns = [
        prompt_ids,
        prompt_ids.take(pa.array(unique.keeper)),
        unique.score,
        unique.keeper == numbers,
        labels[keeper],
        split[keeper],
    ]
    return pa.table(columns, schema=SCHEMA)


def _leaks(
    report: Callable[..., dict[str, Any]],
    vectors: np.ndarray,
    texts: pa.ChunkedArray,
    kept: np.ndarray,
    split: np.ndarray,
) -> dict[str, Any]:
    """Compare the kept training prompts with those of each held-out split."""
    rows = {name: np.flatnonzero(split == name) for name in SPLITS}
    prompts = {name: texts.take(pa.array(rows[name])).to_pylist() for name in SPLITS}
    return {
        name: report(
            vectors[kept[rows["train"]]],
            vectors[kept[rows[name]]],
            prompts["train"],
            prompts[name],
        )
        for name in HELD_OUT
    }


def _counts(
    unique: KeepFirst, labels: np.ndarray, split: np.ndarray, pictures: np.ndarray
) -> Mapping[str, Any]:
    sizes = np.bincount(labels)
    return {
        "prompts": len(unique.keeper),
        "kept": len(unique.kept),
        "dropped": len(unique.keeper) - len(unique.kept),
        "groups": len(sizes),
        "largest_group": int(sizes.max()),
        "kept_by_split": {name: int((split == name).sum()) for name in SPLITS},
        "pictures_by_split": {name: int(pictures[split == name].sum()) for name in SPLITS},
    }
