"""index/ + clean/ + targets/ + groups/ -> shards/{train,val,test}/: the one copy of the pictures.

Each file is one Ray task: read, decode, resize, encode, write. Rows stay in the order of the index,
so that an archive is read from front to back and each of its bytes about once; training shuffles
them (`data/order.py`). Files that have a receipt are not made again. A picture that cannot be read
becomes a row of `rejected/` with its reason. So does a copy, a file with the same bytes as an
earlier one: it could be in another split, or have another prompt.

Memory: the driver has the vectors of all prompts (1.5 KB each), one file of the index, 16 bytes
for each picture and the ids of copies; a worker has one shard.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import CleanConfig, ShardConfig
from img2prompt.data import images
from img2prompt.data.hashed import HashedSet
from img2prompt.data.shards import SCHEMA, SPLITS
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.sources.rows import Rejected, count_kinds, rejected_table, unread_picture
from img2prompt.data.vectors import matrix, vector_column
from img2prompt.distributed import cluster, metrics
from img2prompt.distributed.progress import Progress, StepTimes
from img2prompt.distributed.tasks import run_bounded
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.storage import join
from img2prompt.workspace import Stage

logger = logging.getLogger(__name__)

STEPS = ("read", "decode", "encode", "write")
COPIES = "rejected/copies.parquet"
DIGESTS = pa.schema([("id", pa.string()), ("digest", pa.string())])
"""A 128-bit hash of each picture's file, as 32 hex digits; `digests/` has one file per shard."""


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
        UserError: a split has no picture that can be read.
    """
    inputs = {
        "index": index.fingerprint,
        "clean": clean.fingerprint,
        "targets": targets.fingerprint,
        "groups": groups.fingerprint,
    }
    draft = Draft.open(out, Stage.SHARDS, config, inputs)
    if finished := draft.finished():
        return finished
    parts = _parts(_rows(index, clean, targets, groups), config)
    pictures = sum(groups.counts["pictures_by_split"].values())
    _write_shards(draft, config, limits, parts, targets, pictures)
    _reject_copies(draft, config, cluster.resources().cpus)
    return _publish(draft)


def _write_shards(
    draft: Draft,
    config: ShardConfig,
    limits: CleanConfig,
    parts: Iterator[tuple[str, pa.Table]],
    targets: Artifact,
    pictures: int,
) -> None:
    """Write the shards that have no receipt yet, and the seconds of each step."""
    done = draft.receipts()
    vectors = matrix(targets.read_tables("rows", columns=["target"])["target"])
    write, cpus = ray.remote(_write_shard).options(num_cpus=1), cluster.resources().cpus
    started = (
        write.remote(draft, name, _with_targets(part, vectors), config, limits)
        for name, part in parts
        if name not in done
    )
    already_read = sum(r.rows for name, r in done.items() if not name.startswith("digests/"))
    progress = Progress("shards", pictures - already_read)
    times = StepTimes("shards", dict.fromkeys(STEPS, int(cpus)))
    for rows, seconds in run_bounded(started, cpus):
        progress.add(rows)
        times.add_rows(rows, seconds)
    times.keep(draft)


def _rows(
    index: Artifact, clean: Artifact, targets: Artifact, groups: Artifact
) -> Iterator[pa.Table]:
    """Return the pictures that are used, in the order of the index, with prompt and split.

    One table for each file of the index. `answer` is the row of the picture's target.
    """
    prompts = groups.read_tables("rows", columns=["prompt_id", "kept", "split"])
    prompts = prompts.filter(prompts["kept"]).drop_columns(["kept"])
    answers = targets.read_tables("rows", columns=["prompt_id"])
    answers = answers.append_column("answer", pa.array(np.arange(answers.num_rows)))
    prompts = prompts.join(answers, "prompt_id", join_type="inner").combine_chunks()
    for name in clean.names("rows"):
        fit = clean.read_table(name, columns=["id", "prompt_id"])
        places = index.read_table(name, columns=["id", "source", "uri", "member"])
        places = places.append_column("place", pa.array(np.arange(places.num_rows)))
        rows = fit.join(prompts, "prompt_id", join_type="inner").join(
            places, "id", join_type="inner"
        )
        yield rows.sort_by("place").combine_chunks()


def _parts(tables: Iterator[pa.Table], config: ShardConfig) -> Iterator[tuple[str, pa.Table]]:
    """Cut rows into shards by name; the last shard of a split may be shorter than the others."""
    waiting: dict[str, pa.Table] = {}
    written = dict.fromkeys(SPLITS, 0)

    def cut(split: str, least: int) -> Iterator[tuple[str, pa.Table]]:
        while waiting[split].num_rows >= least:
            part = waiting[split].slice(0, config.rows_per_shard).combine_chunks()
            waiting[split] = waiting[split].slice(config.rows_per_shard)
            yield f"{split}/{written[split]:05d}.parquet", part
            written[split] += 1

    for table in tables:
        for split in SPLITS:
            rows = table.filter(pc.field("split") == split)
            waiting[split] = pa.concat_tables(
                [waiting[split], rows] if split in waiting else [rows]
            )
            yield from cut(split, config.rows_per_shard)
    for split in waiting:
        yield from cut(split, 1)


def _with_targets(rows: pa.Table, vectors: np.ndarray) -> pa.Table:
    return rows.append_column("target", vector_column(vectors[rows["answer"].to_numpy()]))


def _write_shard(
    draft: Draft, name: str, rows: pa.Table, config: ShardConfig, limits: CleanConfig
) -> tuple[int, dict[str, float]]:
    """Write one shard; return its number of rows, rejected ones included, and seconds by step."""
    times = StepTimes(name, dict.fromkeys(STEPS, 1))
    encoded: list[bytes | None] = []
    digests: dict[str, str] = {}
    rejected: list[Rejected] = []
    places = list(zip(rows["uri"].to_pylist(), rows["member"].to_pylist(), strict=True))
    pictures = read_pictures(places)
    for row_id, (uri, member) in zip(rows["id"].to_pylist(), places, strict=True):
        with times.measure("read"):
            data = next(pictures)
        try:
            if isinstance(data, Exception):
                raise data
            with times.measure("decode"):
                image = images.decode(
                    data, limits.max_megapixels, limits.min_side, limits.whole_megapixels
                )
                image = images.resize(image, config.size, config.fit)
            with times.measure("encode"):
                encoded.append(images.encode(image, config.encoding))
            digests[row_id] = hashlib.blake2b(data, digest_size=16).hexdigest()
        except (images.BadPicture, OSError, ValueError) as error:
            encoded.append(None)
            rejected.append(unread_picture(row_id, f"{uri} {member}".strip(), error))
    with times.measure("write"):
        draft.write_table(f"rejected/{name}", rejected_table(rejected))
        columns = {"id": pa.array(digests, pa.string()), "digest": pa.array(digests.values())}
        draft.write_table(f"digests/{name}", pa.table(columns).cast(DIGESTS))
        table = rows.append_column("image", pa.array(encoded, pa.binary()))
        table = table.filter(pc.field("image").is_valid()).select(SCHEMA.names).cast(SCHEMA)
        draft.write_table(name, table, config.rows_per_group)
    return rows.num_rows, times.busy


def _reject_copies(draft: Draft, config: ShardConfig, cpus: float) -> None:
    """Keep the first of pictures whose files are equal, in the order train, val, test.

    The copies are written to COPIES before they are removed from shards, so a kill loses none.
    """
    done, seen = draft.receipts(), HashedSet()
    names = [name for split in SPLITS for name in sorted(done) if name.startswith(f"{split}/")]
    copies: dict[str, dict[str, str]] = {}
    for name in names:
        table = draft.read_table(f"digests/{name}")
        first = seen.add(table["digest"].to_pylist())
        if not first.all():
            rows = table.filter(pa.array(~first)).to_pylist()
            copies[name] = {row["id"]: row["digest"] for row in rows}
    firsts = _first_pictures(draft, names, copies)
    copies = _without_firsts(copies, firsts)
    if COPIES not in done:
        draft.write_table(COPIES, rejected_table(_rejected_copies(copies, firsts)))
    rows = {name: done[f"digests/{name}"].rows - len(ids) for name, ids in copies.items()}
    progress = Progress("shards with copies", total=sum(rows.values()))
    remove = ray.remote(_remove_copies).options(num_cpus=1)
    started = (
        remove.remote(draft, name, set(ids), config)
        for name, ids in copies.items()
        if done[name].rows != rows[name]
    )
    for kept in run_bounded(started, cpus):
        progress.add(kept)


def _remove_copies(draft: Draft, name: str, copies: set[str], config: ShardConfig) -> int:
    """Write a shard again without its copies; return its number of rows."""
    table = draft.read_table(name)
    kept = pa.array([row_id not in copies for row_id in table["id"].to_pylist()])
    # In one chunk, because the chunks of a table change the bytes of its file.
    draft.write_table(name, table.filter(kept).combine_chunks(), config.rows_per_group)
    return kept.true_count


def _first_pictures(
    draft: Draft, names: Sequence[str], copies: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Return the id of the first picture with each digest of the copies."""
    wanted = {digest for ids in copies.values() for digest in ids.values()}
    firsts: dict[str, str] = {}
    for name in names if copies else ():
        for row in draft.read_table(f"digests/{name}").to_pylist():
            if row["digest"] in wanted:
                firsts.setdefault(row["digest"], row["id"])
    return firsts


def _without_firsts(
    copies: Mapping[str, Mapping[str, str]], firsts: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Leave out pictures that are no copies: their digests only share a hash with another one."""
    real = {
        name: {row_id: digest for row_id, digest in ids.items() if firsts[digest] != row_id}
        for name, ids in copies.items()
    }
    return {name: ids for name, ids in real.items() if ids}


def _rejected_copies(
    copies: Mapping[str, Mapping[str, str]], firsts: Mapping[str, str]
) -> Iterator[Rejected]:
    """Return a rejected row for each copy, which names the picture that is kept."""
    for ids in copies.values():
        for row_id, digest in ids.items():
            yield Rejected(row_id, f"repeated picture: it has the bytes of {firsts[digest]}")


def _publish(draft: Draft) -> Artifact:
    counts = dict.fromkeys(SPLITS, 0)
    rejected: list[Rejected] = []
    for name, receipt in draft.receipts().items():
        folder = name.partition("/")[0]
        if folder in counts:
            counts[folder] += receipt.rows
        elif folder == "rejected" and receipt.rows:
            rejected += [Rejected(**row) for row in draft.read_table(name).to_pylist()]
    kinds = count_kinds(rejected)
    if not all(counts.values()):
        raise UserError(
            f"a split has no picture: {counts}, rejected {kinds}; the reasons are in "
            f"{join(draft.uri, 'rejected')}. Repair or add pictures, then delete {draft.uri}"
        )
    metrics.count_rejected(Stage.SHARDS, kinds)
    return draft.publish(**counts, rejected=kinds)
