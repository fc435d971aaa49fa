"""index/ + clean/ + targets/ + groups/ -> shards/{train,val,test}/: the one copy of the pictures.

Each file is one Ray task: read, decode, resize, encode, write. Files that have a receipt are not
made again. A picture that cannot be read becomes a row of `rejected/` with its reason.
"""

import hashlib
import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from img2prompt.artifact import Artifact, Draft, join
from img2prompt.config import CleanConfig, ShardConfig
from img2prompt.data import images
from img2prompt.data.shards import SCHEMA, SPLITS
from img2prompt.data.sources import (
    Rejected,
    count_kinds,
    read_picture,
    rejected_table,
    unread_picture,
)
from img2prompt.errors import UserError
from img2prompt.stages.progress import Progress

logger = logging.getLogger(__name__)

STAGE = "shards"


def run(
    config: ShardConfig,
    limits: CleanConfig,
    index: Artifact,
    clean: Artifact,
    targets: Artifact,
    groups: Artifact,
    out: str,
) -> Artifact:
    """Write and publish the shards of all splits; counts rows by split and `rejected` by kind.

    Raises:
        UserError: not one picture of a split can be read.
    """
    inputs = {
        "index": index.fingerprint,
        "clean": clean.fingerprint,
        "targets": targets.fingerprint,
        "groups": groups.fingerprint,
    }
    draft = Draft.open(out, STAGE, config, inputs)
    if finished := draft.finished():
        return finished
    parts = dict(_parts(_rows(index, clean, targets, groups), config.rows_per_shard))
    pending = [name for name in parts if name not in draft.receipts()]
    make = ray.remote(_make).options(num_cpus=1)
    coming = [make.remote(draft, name, parts[name], config, limits) for name in pending]
    progress = Progress("shards", total=sum(parts[name].num_rows for name in pending))
    while coming:
        ready, coming = ray.wait(coming)
        progress.add(sum(ray.get(ready)))
    return _publish(draft)


def _rows(index: Artifact, clean: Artifact, targets: Artifact, groups: Artifact) -> pa.Table:
    """One row a picture that is used: where it lies, its prompt, target and split."""
    kept = groups.read_tables("rows", columns=["prompt_id", "kept", "split"])
    kept = kept.filter(kept["kept"]).drop_columns(["kept"])
    rows = clean.read_tables("rows", columns=["id", "prompt_id"])
    places = index.read_tables("rows", columns=["id", "source", "uri", "member"])
    answers = targets.read_tables("rows", columns=["prompt_id"])
    answers = answers.append_column("answer", pa.array(np.arange(answers.num_rows)))
    rows = rows.join(kept, "prompt_id", join_type="inner").join(places, "id", join_type="inner")
    rows = rows.join(answers, "prompt_id", join_type="inner").combine_chunks()
    # Joins cannot carry list columns, so the targets are taken by number.
    vectors = targets.read_tables("rows", columns=["target"])["target"].combine_chunks()
    rows = rows.append_column("target", vectors.take(rows["answer"].combine_chunks()))
    keys = [hashlib.sha256(name.encode()).hexdigest() for name in rows["id"].to_pylist()]
    return rows.take(np.argsort(np.array(keys), kind="stable"))


def _parts(rows: pa.Table, rows_per_shard: int) -> list[tuple[str, pa.Table]]:
    """Files of each split by name; rows are already in a mixed, repeatable order."""
    parts = []
    for split in SPLITS:
        chosen = rows.filter(pc.field("split") == split)
        for number, start in enumerate(range(0, chosen.num_rows, rows_per_shard)):
            name = f"{split}/{number:05d}.parquet"
            parts.append((name, chosen.slice(start, rows_per_shard).combine_chunks()))
    return parts


def _make(draft: Draft, name: str, rows: pa.Table, config: ShardConfig, limits: CleanConfig) -> int:
    """Write one shard; returns the rows it looked at."""
    encoded: list[bytes | None] = []
    rejected: list[Rejected] = []
    for row in rows.select(["id", "uri", "member"]).to_pylist():
        try:
            data = read_picture(row["uri"], row["member"])
            image = images.decode(data, limits.max_megapixels, limits.min_side)
            encoded.append(
                images.encode(images.resize(image, config.size, config.fit), config.encoding)
            )
        except (images.BadPicture, OSError) as error:
            encoded.append(None)
            where = f"{row['uri']} {row['member']}".strip()
            rejected.append(unread_picture(row["id"], where, error))
    draft.write_table(f"rejected/{name}", rejected_table(rejected))
    table = rows.append_column("image", pa.array(encoded, pa.binary()))
    table = table.filter(pc.field("image").is_valid()).select(SCHEMA.names).cast(SCHEMA)
    draft.write_table(name, table, config.rows_per_group)
    return rows.num_rows


def _publish(draft: Draft) -> Artifact:
    receipts = draft.receipts()
    names = [name for name in receipts if name.startswith("rejected/")]
    rejected = [Rejected(**row) for name in names for row in draft.read_table(name).to_pylist()]
    counts = {split: 0 for split in SPLITS}
    for name in receipts.keys() - names:
        counts[name.split("/")[0]] += receipts[name].rows
    kinds = count_kinds(rejected)
    if not all(counts.values()):
        raise UserError(
            f"a split has no picture: {counts}, rejected {kinds}; the reasons are in "
            f"{join(draft.uri, 'rejected')}. Mend or add pictures, then delete {draft.uri}"
        )
    return draft.publish(**counts, rejected=kinds)
