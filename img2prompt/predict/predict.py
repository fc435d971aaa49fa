"""A folder of pictures and a predictor -> predictions/: vectors, submission, readable prompts.

`vectors-*.parquet` (id, vector, and text and confidence where the predictor gives them),
`submission.csv` (Kaggle's format), `prompts.csv` (the nearest real prompts of each picture with
their cosine), `rejected.parquet` (id, reason). Pictures are predicted in parts, so a killed run
resumes with the parts that are missing.
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

from img2prompt.artifact import Artifact, fingerprint_of
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
from img2prompt.data.vectors import finite_rows, matrix, vector_column
from img2prompt.distributed import metrics
from img2prompt.distributed.actors import DECODE_CPUS, Pool
from img2prompt.distributed.progress import Progress
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.predict.answers import AnswerColumns, read_answers
from img2prompt.predict.prompts import index_prompts, nearest_csv, read_prompts
from img2prompt.predict.submission import check_id, write_submission
from img2prompt.predictors.base import PredictorSpec
from img2prompt.prepare.run import PreparedData
from img2prompt.storage import open_uri, read_bytes
from img2prompt.workspace import Stage

logger = logging.getLogger(__name__)

SUBMISSION = "submission.csv"
PROMPTS = "prompts.csv"
REJECTED = "rejected.parquet"
NONFINITE = "non-finite answer: the predictor's vector for this picture has NaN or infinite values"
"""Reason in REJECTED."""
PART = 10_000
"""Pictures in one file of vectors."""


def run(
    config: PredictConfig, predictor: PredictorSpec, prepared: PreparedData, out: str
) -> Artifact:
    """Predict all pictures of a folder; counts `pictures`, and `rejected` by kind."""
    pictures, unnamed = list_pictures(config.pictures)
    listing = [[info.base_name, info.size] for info in pictures.values()]
    listing += [[row.id, row.reason] for row in unnamed]
    prompts = read_prompts(config.prompts) if config.prompts else []
    inputs = {
        **predictor.fingerprints(),
        "pictures": fingerprint_of(listing),
        "prompts": fingerprint_of(prompts) if prompts else prepared.groups.fingerprint,
    }
    check = functools.partial(predictor.check, prepared.shards)
    draft = Draft.open(out, Stage.PREDICTIONS, config, inputs, check, free=("batch_size",))
    if finished := draft.finished():
        return finished
    uris = {name: files.inside(config.pictures, info.base_name) for name, info in pictures.items()}
    _predict_parts(config, predictor, prepared.shards, uris, draft)
    ids, vectors, unread = _collect(draft)
    rejected = pa.concat_tables([rejected_table(unnamed), unread])
    draft.write_table(REJECTED, rejected)
    if ids:
        _write_submission(draft, ids, vectors)
        index = index_prompts(prompts, config.encoder, prepared)
        nearest = nearest_csv(ids, vectors, index, config.nearest)
        draft.write_bytes(PROMPTS, nearest, rows=len(ids) * config.nearest)
    kinds = count_kinds([Rejected(**row) for row in rejected.to_pylist()])
    metrics.count_rejected(Stage.PREDICTIONS, kinds)
    return draft.publish(pictures=len(ids), rejected=kinds)


def list_pictures(folder: str) -> tuple[dict[str, pafs.FileInfo], list[Rejected]]:
    """Return each picture by its id, the file name without ending, in the order of the ids.

    Rejected are files whose name cannot be an id of the submission, and, of files that share an
    id, all but the first.

    Raises:
        UserError: no folder, or no picture in it.
    """
    fs, path = open_uri(folder)
    if not folder or fs.get_file_info(path).type != pafs.FileType.Directory:
        raise UserError(f"pictures is {folder!r}: give a folder of pictures with --pictures")
    pictures, rejected = dict[str, pafs.FileInfo](), list[Rejected]()
    infos = [info for info in fs.get_file_info(pafs.FileSelector(path)) if info.is_file]
    for info in sorted(infos, key=_file_name):
        stem, ending = posixpath.splitext(_file_name(info))
        if not is_picture(ending):
            continue
        if reason := _name_reason(stem, info, pictures):
            rejected.append(Rejected(stem, reason))
        else:
            pictures[stem] = info
    endings = f"looked for {', '.join(PICTURE_ENDS)}"
    if not pictures:
        reasons = "".join(f"\n  {row.reason}" for row in rejected[:3])
        raise UserError(f"{folder} contains no picture; {endings}{reasons}")
    logger.info("predict: %d pictures of %d files; %s", len(pictures), len(infos), endings)
    return dict(sorted(pictures.items())), rejected


def _file_name(info: pafs.FileInfo) -> str:
    """Return the name of a file, with bytes that are not UTF-8 as escapes."""
    try:
        return info.base_name
    except UnicodeDecodeError as error:
        return posixpath.basename(error.object.decode("utf-8", "backslashreplace"))


def _name_reason(stem: str, info: pafs.FileInfo, pictures: dict[str, pafs.FileInfo]) -> str | None:
    """Return why a file name without ending cannot be an id beside those of `pictures`."""
    try:
        check_id(stem)
        both = f"{info.path} and {pictures[stem].path}" if stem in pictures else info.path
    except (UserError, UnicodeDecodeError) as error:
        return f"unusable name: {error}"
    return f"repeated id: {both} would both be {stem!r}: rename one" if stem in pictures else None


def _predict_parts(
    config: PredictConfig,
    predictor: PredictorSpec,
    shards: Artifact,
    uris: dict[str, str],
    draft: Draft,
) -> None:
    """Predict the pictures `uris`, by id, and write each part that is not written yet."""
    ids = list(uris)
    progress = Progress("predict", total=len(ids))
    load = functools.partial(load_pictures, size=shards.config["size"], fit=shards.config["fit"])
    make_model = functools.partial(AnswerColumns, [predictor], config.views)
    pool = Pool(make_model=make_model, batch_size=config.batch_size)
    done = draft.receipts()
    for number, start in enumerate(range(0, len(ids), PART)):
        part = ids[start : start + PART]
        if f"rejected-{number:05d}.parquet" not in done:
            rows = ray.data.from_items([{"id": name, "uri": uris[name]} for name in part])
            rows = rows.map_batches(load, batch_size=config.batch_size, num_cpus=DECODE_CPUS)
            _write_part(draft, number, _gather(pool.forward(rows, len(part)), predictor.name))
        progress.add(len(part))


def load_pictures(batch: dict[str, np.ndarray], size: int, fit: Any) -> dict[str, Any]:
    """Load the pixels of each `uri`; an unreadable picture gets a `reason` and a black square."""
    pixels = np.zeros((len(batch["uri"]), size, size, 3), np.uint8)
    reasons = [""] * len(pixels)
    for row, uri in enumerate(batch["uri"]):
        try:
            pixels[row] = images.resize(images.decode(files.read_bytes(uri)), size, fit)
        except (images.BadPicture, OSError, ValueError) as error:
            reasons[row] = unread_picture(batch["id"][row], uri, error).reason
    return {"id": batch["id"], "reason": np.array(reasons, object), "pixels": pixels}


def _gather(rows: ray.data.Dataset, name: str) -> pa.Table:
    """Return all rows, in the order of the ids, with the answers of the predictor `name`.

    A picture whose vector is non-finite gets a `reason`.
    """
    tables = []
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        answers = read_answers(batch, name)
        reasons = np.array(batch["reason"], object)
        reasons[~finite_rows(answers.vectors) & (reasons == "")] = NONFINITE
        columns = {
            "id": batch["id"],
            "reason": pa.array(reasons, pa.string()),
            "vector": vector_column(answers.vectors),
        }
        if answers.texts is not None:
            columns["text"] = pa.array(answers.texts, pa.string())
        if answers.confidences is not None:
            columns["confidence"] = pa.array(answers.confidences, pa.float32())
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables)
    return table.take(np.argsort(np.array(table["id"].to_pylist())))


def _write_part(draft: Draft, number: int, table: pa.Table) -> None:
    """Write the vectors, then the rejected rows, whose file marks the part as complete."""
    good = pc.field("reason") == ""
    answers = table.filter(good).drop_columns(["reason"])
    draft.write_table(f"vectors-{number:05d}.parquet", answers)
    rejected = table.filter(~good).select(["id", "reason"]).cast(REJECTED_SCHEMA)
    draft.write_table(f"rejected-{number:05d}.parquet", rejected)


def _collect(draft: Draft) -> tuple[list[str], np.ndarray, pa.Table]:
    """Return ids, vectors (N, 384) and rejected rows of all parts."""
    names = sorted(draft.receipts())
    vectors = pa.concat_tables([draft.read_table(n) for n in names if n.startswith("vectors-")])
    rejected = pa.concat_tables([draft.read_table(n) for n in names if n.startswith("rejected-")])
    return vectors["id"].to_pylist(), matrix(vectors["vector"]), rejected


def _write_submission(draft: Draft, ids: list[str], vectors: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / SUBMISSION)
        write_submission(path, ids, vectors)
        draft.write_bytes(SUBMISSION, read_bytes(path), rows=vectors.size)


def summary(predictions: Artifact, limit: int = 8) -> list[list[object]]:
    """Return table rows: the nearest prompt of the first pictures."""
    if PROMPTS not in predictions.files:
        return []
    text = read_bytes(predictions.path(PROMPTS)).decode()
    firsts = [row for row in csv.DictReader(io.StringIO(text)) if row["rank"] == "1"]
    return [[row["imgId"], row["prompt"], float(row["cosine"])] for row in firsts[:limit]]


def rejected_summary(predictions: Artifact, limit: int = 8) -> list[list[object]]:
    """Return table rows: the first pictures that could not be read, with the reason."""
    rows = predictions.read_table(REJECTED).slice(0, limit).to_pylist()
    return [[row["id"], row["reason"]] for row in rows]
