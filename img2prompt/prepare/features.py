"""shards/ -> features/: the frozen tower, once over every picture.

One file for each shard, with its rows in the same order (once for each view, one view after the
other), written as soon as it is complete. A killed run resumes with the shards that have no file
yet. `timings.json` reports where the time of the last run went.
"""

import functools
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import FeaturesConfig
from img2prompt.data.shards import SPLITS, check_size
from img2prompt.data.vectors import require_finite, to_matrix, vector_column
from img2prompt.distributed.actors import Pool, actor_count, forward_shards
from img2prompt.distributed.progress import Progress
from img2prompt.draft import Draft
from img2prompt.model.inference import compile_for_batches, prepare_for_inference
from img2prompt.model.towers.build import checkpoint_stamp, open_tower
from img2prompt.model.towers.weights import STAMP
from img2prompt.model.views import ViewVectors
from img2prompt.workspace import Stage

FREE = ("workers", "batch_size", "tower.download")
"""Settings that do not change the features; a killed run may resume with others."""


def run(config: FeaturesConfig, shards: Artifact, out: str) -> Artifact:
    """Embed all shards; counts `pictures` and `rows` (pictures times views).

    Raises:
        UserError: the shards have another size than the tower, the cluster is too small, or a
            feature is non-finite.
    """
    tower = open_tower(config.tower)
    inputs = {"shards": shards.fingerprint, "tower": tower.base_fingerprint}

    def check() -> None:
        check_size(shards, tower.shape.size)
        actor_count(config.workers)

    draft = Draft.open(out, Stage.FEATURES, config, inputs, check, free=FREE)
    if finished := draft.finished():
        return finished
    done = draft.receipts()
    names = [name for split in SPLITS for name in shards.names(f"{split}/") if name not in done]
    rows = sum(shards.files[name].rows for name in names)
    pool = Pool(
        make_model=functools.partial(_load_tower, config),
        batch_size=config.batch_size,
        workers=config.workers,
    )
    progress, times = Progress("features", total=rows), pool.times("features", rows)
    for name, rows_of_views in forward_shards(shards, names, pool, times):
        with times.measure("write"):
            source = f"features of {shards.path(name)} by the tower {config.tower.weights!r}"
            draft.write_table(name, _one_row_a_view(rows_of_views, config.views, source))
        progress.add(len(rows_of_views))
    times.keep(draft)
    stamp = {"stamp": checkpoint_stamp(config.tower)}
    draft.write_bytes(STAMP, json.dumps(stamp).encode(), rows=0)
    rows = sum(receipt.rows for receipt in draft.receipts().values())
    return draft.publish(pictures=rows // len(config.views), rows=rows)


def _load_tower(config: FeaturesConfig, device: torch.device) -> ViewVectors:
    tower = open_tower(config.tower)
    prepare_for_inference(tower, tower, device, config.precision)
    compile_for_batches(tower, device)
    return ViewVectors(tower, config.views)


def _one_row_a_view(table: pa.Table, views: Sequence[str], source: str) -> pa.Table:
    """Turn rows with a `vector` (V * D) into V rows, all of one view before the next.

    Raises:
        UserError: a feature is non-finite, as float16 at the latest; `source` begins the message.
    """
    ids, vectors = table["id"].to_pylist(), to_matrix(table["vector"])
    by_view = np.concatenate(np.split(vectors, len(views), axis=1))
    with np.errstate(over="ignore"):
        features = by_view.astype(np.float16)
    require_finite(features, ids * len(views), source)
    return pa.table(
        {
            "id": ids * len(views),
            "view": np.repeat(np.array(views), len(ids)),
            "feature": vector_column(features, np.float16),
        }
    )
