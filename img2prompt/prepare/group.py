"""Near duplicates and the split: rows-00000.parquet (one row per prompt), leaks.json.

Of near duplicates the first in the order of the targets is kept. Similar kept prompts share a group
and with it a split; a dropped prompt has the group and split of its keeper. Only kept prompts are
for training and scoring: a dropped one may be near prompts of other splits.

Memory: the driver holds the vectors (1.5 KB a prompt) up to four times, 6.5 KB a prompt in the leak
report, which is 12 GB for 1.8 million (computed from the arrays, not measured).
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

from img2prompt.artifact import Artifact, Draft
from img2prompt.config.prepare import GroupConfig
from img2prompt.data.shards import SPLITS
from img2prompt.data.similar.dedupe import KeepFirst, keep_first
from img2prompt.data.similar.matches import MatchTask
from img2prompt.data.similar.split import HELD_OUT, assign, components, leak_report
from img2prompt.data.vectors import matrix
from img2prompt.distributed import cluster
from img2prompt.distributed.tasks import run_bounded
from img2prompt.workspace import Stage

logger = logging.getLogger(__name__)

LEAKS = "leaks.json"
SPREAD_ROWS = 200_000
"""From so many prompts on (7 seconds on two cores), comparing is worth sharing with workers."""

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
"""`keeper`: prompt_id of the kept prompt that stands for this one (its own when kept). `score`:
cosine to it."""


def run(config: GroupConfig, targets: Artifact, out: str) -> Artifact:
    """De-duplicate, group and split the prompts of the targets, in their order.

    Counts `prompts`, `kept`, `dropped`, `groups`, `largest_group` (kept prompts), `kept_by_split`,
    `pictures_by_split` (of kept prompts), and the largest `train_to_val` and `train_to_test`
    cosine.
    """
    draft = Draft.open(out, Stage.GROUPS, config, {"targets": targets.fingerprint})
    if finished := draft.finished():
        return finished
    prompts = targets.read_tables("rows", ["prompt_id", "prompt", "pictures", "target"])
    vectors = matrix(prompts["target"])
    prompts = prompts.drop_columns(["target"])  # as large again
    place = partial(_placed, prompts=len(vectors))
    found = place(keep_first)(vectors, config.duplicate_cosine)
    logger.info("groups: %d of %d prompts kept", len(found.kept), len(vectors))
    labels = place(components)(vectors[found.kept], config.split_cosine)
    pictures = prompts["pictures"].to_numpy()[found.kept]
    split = assign(labels, pictures, config.val_fraction, config.test_fraction, config.seed)
    draft.write_table("rows-00000.parquet", _table(prompts["prompt_id"], found, labels, split))
    texts = prompts["prompt"].take(pa.array(found.kept))
    leaks = _leaks(place(leak_report), vectors, texts, found.kept, split)
    draft.write_bytes(LEAKS, json.dumps(leaks, indent=2).encode())
    counts = _counts(found, labels, split, pictures)
    logger.info("groups: %s", counts)
    return draft.publish(
        **counts, **{f"train_to_{name}": leaks[name]["largest_cosine"] for name in HELD_OUT}
    )


def _placed(compare: Callable[..., Any], prompts: int) -> Callable[..., Any]:
    """A function that compares vectors, where that is fastest: here when they are few or a GPU is
    at hand, on a worker with a GPU, or its jobs on all CPU workers. The answer is the same."""
    if prompts < SPREAD_ROWS or torch.cuda.is_available() or not ray.is_initialized():
        return compare
    if cluster.resources().gpus:
        on_gpu = ray.remote(num_gpus=1)(compare)
        return lambda *arguments: ray.get(on_gpu.remote(*arguments))
    return partial(compare, spread=over_workers)


def over_workers(
    function: Callable[[MatchTask], Any],
) -> Callable[[Iterable[MatchTask]], Iterator[Any]]:
    """Call a function for many jobs in Ray tasks; what it holds is sent once to each machine."""
    shared = ray.put(function)

    def run(jobs: Iterable[MatchTask]) -> Iterator[Any]:
        started = (_call.remote(shared, job) for job in jobs)
        return run_bounded(started, cluster.resources().cpus)

    return run


@ray.remote
def _call(function: Callable[[MatchTask], Any], job: MatchTask) -> Any:
    return function(job)


def _table(
    prompt_ids: pa.ChunkedArray, found: KeepFirst, labels: np.ndarray, split: np.ndarray
) -> pa.Table:
    """All prompts; `labels` and `split` are those of the kept ones."""
    numbers = np.arange(len(found.keeper))
    place = np.searchsorted(found.kept, found.keeper)
    columns = [
        prompt_ids,
        prompt_ids.take(pa.array(found.keeper)),
        found.score,
        found.keeper == numbers,
        labels[place],
        split[place],
    ]
    return pa.table(columns, schema=SCHEMA)


def _leaks(
    report: Callable[..., dict[str, Any]],
    vectors: np.ndarray,
    texts: pa.ChunkedArray,
    kept: np.ndarray,
    split: np.ndarray,
) -> dict[str, Any]:
    """How near the kept training prompts come to those of each held-out split."""
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
    found: KeepFirst, labels: np.ndarray, split: np.ndarray, pictures: np.ndarray
) -> Mapping[str, Any]:
    sizes = np.bincount(labels)
    return {
        "prompts": len(found.keeper),
        "kept": len(found.kept),
        "dropped": len(found.keeper) - len(found.kept),
        "groups": len(sizes),
        "largest_group": int(sizes.max()),
        "kept_by_split": {name: int((split == name).sum()) for name in SPLITS},
        "pictures_by_split": {name: int(pictures[split == name].sum()) for name in SPLITS},
    }
