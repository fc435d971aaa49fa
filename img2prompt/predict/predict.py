"""A folder of pictures and a run -> predictions/: vectors, submission, readable prompts.

`vectors-*.parquet` (id, vector), `submission.csv` (Kaggle's format), `prompts.csv` (the nearest
real prompts of each picture with their cosine), `rejected.parquet` (id, reason). Pictures go in
parts, so a killed run goes on with the parts that are missing.
"""

import csv
import functools
import io
import logging
import posixpath
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import ray.data

from img2prompt.artifact import Artifact, Draft, fingerprint_of
from img2prompt.config.predict import PredictConfig
from img2prompt.data import images
from img2prompt.data.sources import files
from img2prompt.data.sources.folder import PICTURE_ENDS, is_picture
from img2prompt.data.sources.rows import (
    REJECTED_SCHEMA,
    Rejected,
    count_kinds,
    rejected_table,
    unread_picture,
)
from img2prompt.data.vectors import matrix, vector_column
from img2prompt.distributed.actors import DECODE_CPUS, Pool, to_matrix
from img2prompt.distributed.progress import Progress
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import load_prompt_model
from img2prompt.model.text import PromptEncoder
from img2prompt.predict.submission import check_id, write_submission
from img2prompt.predictors.neighbours import NearestPrompts
from img2prompt.prepare.run import PreparedData
from img2prompt.storage import open_uri, read_bytes
from img2prompt.workspace import Stage

logger = logging.getLogger(__name__)

SUBMISSION = "submission.csv"
PROMPTS = "prompts.csv"
REJECTED = "rejected.parquet"
PART = 10_000
"""Pictures in one file of vectors."""


def run(config: PredictConfig, trained: Artifact, prepared: PreparedData, out: str) -> Artifact:
    """Predict all pictures of a folder; counts `pictures`, and `rejected` by kind."""
    found, unnamed = list_pictures(config.pictures)
    listing = [[info.base_name, info.size] for info in found.values()]
    listing += [[row.id, row.reason] for row in unnamed]
    prompts = _read_prompts(config.prompts) if config.prompts else []
    inputs = {
        "run": trained.fingerprint,
        "pictures": fingerprint_of(listing),
        "prompts": fingerprint_of(prompts) if prompts else prepared.groups.fingerprint,
    }
    trained.require_input("shards", prepared.shards)
    check = functools.partial(_check_tower, trained)
    draft = Draft.open(out, Stage.PREDICTIONS, config, inputs, check, free=("batch_size",))
    if finished := draft.finished():
        return finished
    places = {name: files.inside(config.pictures, info.base_name) for name, info in found.items()}
    _predict_parts(config, trained, prepared.shards, places, draft)
    ids, vectors, unread = _collect(draft)
    rejected = pa.concat_tables([rejected_table(unnamed), unread])
    draft.write_table(REJECTED, rejected)
    if ids:
        _write_submission(draft, ids, vectors)
        corpus = _corpus(prompts, config.encoder, prepared)
        _write_prompts(draft, ids, vectors, corpus, config.nearest)
    kinds = count_kinds([Rejected(**row) for row in rejected.to_pylist()])
    return draft.publish(pictures=len(ids), rejected=kinds)


def _check_tower(trained: Artifact) -> None:
    """Refuse (UserError) here, not in an actor, a run whose tower is not there."""
    load_prompt_model(trained)


def list_pictures(folder: str) -> tuple[dict[str, pafs.FileInfo], list[Rejected]]:
    """Each picture by its id, the file name without ending, in the order of the ids.

    Rejected are names that cannot be an id of the submission, and, of files that share an id, all
    but the first.

    Raises:
        UserError: no folder, or no picture in it.
    """
    fs, path = open_uri(folder)
    if not folder or fs.get_file_info(path).type != pafs.FileType.Directory:
        raise UserError(f"pictures is {folder!r}: give a folder of pictures with --pictures")
    found, rejected = dict[str, pafs.FileInfo](), list[Rejected]()
    there = [info for info in fs.get_file_info(pafs.FileSelector(path)) if info.is_file]
    for info in sorted(there, key=_file_name):
        stem, ending = posixpath.splitext(_file_name(info))
        if not is_picture(ending):
            continue
        if reason := _name_reason(stem, info, found):
            rejected.append(Rejected(stem, reason))
        else:
            found[stem] = info
    looked = f"looked for {', '.join(PICTURE_ENDS)}"
    if not found:
        told = "".join(f"\n  {row.reason}" for row in rejected[:3])
        raise UserError(f"{folder} holds no picture; {looked}{told}")
    logger.info("predict: %d pictures of %d files; %s", len(found), len(there), looked)
    return dict(sorted(found.items())), rejected


def _file_name(info: pafs.FileInfo) -> str:
    """The name of a file; what is no UTF-8 in it as escapes."""
    try:
        return info.base_name
    except UnicodeDecodeError as error:
        return posixpath.basename(error.object.decode("utf-8", "backslashreplace"))


def _name_reason(stem: str, info: pafs.FileInfo, found: dict[str, pafs.FileInfo]) -> str | None:
    """Why a picture cannot have its file name without ending as id, beside those found."""
    try:
        check_id(stem)
        both = f"{info.path} and {found[stem].path}" if stem in found else info.path
    except (UserError, UnicodeDecodeError) as error:
        return f"unusable name: {error}"
    return f"repeated id: {both} would both be {stem!r}: rename one" if stem in found else None


def _predict_parts(
    config: PredictConfig, trained: Artifact, shards: Artifact, places: dict[str, str], draft: Draft
) -> None:
    names = list(places)
    progress = Progress("predict", total=len(names))
    prepare = functools.partial(load_pictures, size=shards.config["size"], fit=shards.config["fit"])
    pool = Pool(
        make_model=functools.partial(load_prompt_model, trained), batch_size=config.batch_size
    )
    done = draft.receipts()
    for number, start in enumerate(range(0, len(names), PART)):
        part = names[start : start + PART]
        if f"rejected-{number:05d}.parquet" not in done:
            rows = ray.data.from_items([{"id": name, "uri": places[name]} for name in part])
            rows = rows.map_batches(prepare, batch_size=config.batch_size, num_cpus=DECODE_CPUS)
            _write_part(draft, number, _gather(pool.forward(rows, len(part))))
        progress.add(len(part))


def load_pictures(batch: dict[str, np.ndarray], size: int, fit: Any) -> dict[str, Any]:
    """Pixels of each `uri`; a picture that cannot be read gets its `reason` and a black square."""
    pixels = np.zeros((len(batch["uri"]), size, size, 3), np.uint8)
    reasons = [""] * len(pixels)
    for row, uri in enumerate(batch["uri"]):
        try:
            pixels[row] = images.resize(images.decode(files.read_bytes(uri)), size, fit)
        except (images.BadPicture, OSError, ValueError) as error:
            reasons[row] = unread_picture(batch["id"][row], uri, error).reason
    return {"id": batch["id"], "reason": np.array(reasons, object), "pixels": pixels}


def _gather(rows: ray.data.Dataset) -> pa.Table:
    """All rows in memory, in the order of the ids."""
    tables = []
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        column = vector_column(to_matrix(batch["vector"]))
        tables.append(pa.table({"id": batch["id"], "reason": batch["reason"], "vector": column}))
    table = pa.concat_tables(tables)
    return table.take(np.argsort(np.array(table["id"].to_pylist())))


def _write_part(draft: Draft, number: int, table: pa.Table) -> None:
    """Vectors first: the file of rejected rows tells that a part is complete."""
    good = pc.field("reason") == ""
    draft.write_table(f"vectors-{number:05d}.parquet", table.filter(good).select(["id", "vector"]))
    rejected = table.filter(~good).select(["id", "reason"]).cast(REJECTED_SCHEMA)
    draft.write_table(f"rejected-{number:05d}.parquet", rejected)


def _collect(draft: Draft) -> tuple[list[str], np.ndarray, pa.Table]:
    """Ids, vectors (N, 384) and rejected rows of all parts."""
    names = sorted(draft.receipts())
    vectors = pa.concat_tables([draft.read_table(n) for n in names if n.startswith("vectors-")])
    rejected = pa.concat_tables([draft.read_table(n) for n in names if n.startswith("rejected-")])
    return vectors["id"].to_pylist(), matrix(vectors["vector"]), rejected


def _write_submission(draft: Draft, ids: list[str], vectors: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / SUBMISSION)
        write_submission(path, ids, vectors)
        draft.write_bytes(SUBMISSION, read_bytes(path), rows=vectors.size)


def _read_prompts(path: str) -> list[str]:
    """The distinct lines of a text file, in alphabetical order."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompts {path!r} cannot be read ({error}); allowed: UTF-8 text, a prompt a line"
        ) from None
    prompts = sorted({line.strip() for line in text.splitlines()} - {""})
    if not prompts:
        raise UserError(f"prompts {path!r} holds no line of text; allowed: one prompt a line")
    return prompts


def _corpus(prompts: list[str], encoder: str, prepared: PreparedData) -> NearestPrompts:
    """What predictions are compared with: the user's prompts, or those of training."""
    if prompts:
        return NearestPrompts(PromptEncoder(encoder).encode(prompts), prompts)
    splits = prepared.groups.read_tables("rows", ["prompt_id", "kept", "split"])
    training = splits.filter((pc.field("split") == "train") & pc.field("kept"))["prompt_id"]
    table = prepared.targets.read_tables("rows", ["prompt_id", "prompt", "target"])
    table = table.filter(pc.field("prompt_id").isin(training.to_pylist()))
    return NearestPrompts(matrix(table["target"]), table["prompt"].to_pylist())


def _write_prompts(
    draft: Draft, ids: list[str], vectors: np.ndarray, corpus: NearestPrompts, nearest: int
) -> None:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["imgId", "rank", "cosine", "prompt"])
    for name, found in zip(ids, corpus.search(vectors, nearest), strict=True):
        for rank, (prompt, cosine) in enumerate(found, start=1):
            writer.writerow([name, rank, f"{cosine:.4f}", prompt])
    draft.write_bytes(PROMPTS, sink.getvalue().encode(), rows=len(ids) * nearest)


def summary(predictions: Artifact, limit: int = 8) -> list[list[object]]:
    """Rows for a table: the nearest prompt of the first pictures."""
    if PROMPTS not in predictions.files:
        return []
    text = read_bytes(predictions.path(PROMPTS)).decode()
    firsts = [row for row in csv.DictReader(io.StringIO(text)) if row["rank"] == "1"]
    return [[row["imgId"], row["prompt"], float(row["cosine"])] for row in firsts[:limit]]


def rejected_summary(predictions: Artifact, limit: int = 8) -> list[list[object]]:
    """Rows for a table: the first pictures that could not be read, with the reason."""
    rows = predictions.read_table(REJECTED).slice(0, limit).to_pylist()
    return [[row["id"], row["reason"]] for row in rows]
