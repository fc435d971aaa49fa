"""shards/ -> features/: the frozen tower, once over every picture.

One file for each shard, with its rows in the same order, written as soon as it is complete; a
killed run goes on with the shards that have no file yet.
"""

import functools

import numpy as np
import pyarrow as pa

from img2prompt.artifact import Artifact, Draft
from img2prompt.config import FeaturesConfig
from img2prompt.data.shards import SPLITS, check_size
from img2prompt.data.vectors import vector_column
from img2prompt.model.predictor import open_tower
from img2prompt.stages.progress import Progress
from img2prompt.stages.streaming import actor_count, forward_shards

STAGE = "features"
VIEW = "plain"


def run(config: FeaturesConfig, shards: Artifact, out: str) -> Artifact:
    """Embed all shards and publish."""
    tower = open_tower(config.tower)
    inputs = {"shards": shards.fingerprint, "tower": tower.base_fingerprint}

    def check() -> None:
        check_size(shards, tower.size)
        actor_count(config.workers)

    draft = Draft.open(out, STAGE, config, inputs, check)
    if finished := draft.finished():
        return finished
    done = draft.receipts()
    pending = [name for split in SPLITS for name in shards.names(f"{split}/") if name not in done]
    progress = Progress("features", total=sum(shards.files[name].rows for name in pending))
    make_tower = functools.partial(open_tower, config.tower)
    stream = forward_shards(
        shards, pending, make_tower, config.batch_size, config.workers, config.precision
    )
    for name, ids, vectors in stream:
        column, views = vector_column(vectors, np.float16), pa.array([VIEW] * len(ids))
        draft.write_table(name, pa.table({"id": ids, "view": views, "feature": column}))
        progress.add(len(ids))
    return draft.publish(rows=sum(receipt.rows for receipt in draft.receipts().values()))
