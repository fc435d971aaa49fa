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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from img2prompt.artifact import Artifact, fingerprint_of
from img2prompt.config.predict import PredictConfig
from img2prompt.data import images
from img2prompt.data.sources import files, listing
from img2prompt.data.sources.folder import PICTURE_ENDS, is_picture
from img2prompt.data.sources.left_out import FOLDERS, LeftOut
from img2prompt.data.sources.listing import Entry
from img2prompt.data.sources.rows import (
    REJECTED_SCHEMA,
    Rejected,
    count_kinds,
    rejected_table,
    unread_picture,
)
from img2prompt.data.vectors import finite_rows, matrix, vector_column
from img2prompt.distributed import metrics
from img2prompt.distributed.forward import ModelMaker, forward_in_process
from img2prompt.distributed.placement import few_pictures
from img2prompt.distributed.progress import Progress
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.predict.answers import AnswerColumns, read_answers
from img2prompt.predict.prompts import index_prompts, nearest_csv, read_prompts
from img2prompt.predict.submission import check_id, write_submission
from img2prompt.predictors.base import PredictorSpec
from img2prompt.prepare.prepared_data import PreparedData
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
    pictures, unnamed, left_out = list_pictures(config.pictures)
    contents = [[entry.name, entry.size] for entry in pictures.values()]
    contents += [[row.id, row.reason] for row in unnamed]
    prompts = read_prompts(config.prompts) if config.prompts else []
    inputs = {
        **predictor.fingerprints(),
        "pictures": fingerprint_of(contents),
        "prompts": fingerprint_of(prompts) if prompts else prepared.groups.fingerprint,
    }
    check = functools.partial(predictor.check, prepared.shards)
    draft = Draft.open(out, Stage.PREDICTIONS, config, inputs, check, free=("batch_size",))
    if finished := draft.finished():
        return finished
    uris = {name: files.inside(config.pictures, entry.name) for name, entry in pictures.items()}
    _predict_parts(config, predictor, prepared.shards, uris, draft)
    ids, vectors, unread = _collect(draft)
    rejected = pa.concat_tables([rejected_table([*unnamed, *left_out]), unread])
    draft.write_table(REJECTED, rejected)
    if ids:
        _write_submission(draft, ids, vectors)
        index = index_prompts(prompts, config.encoder, prepared)
        nearest = nearest_csv(ids, vectors, index, config.nearest)
        draft.write_bytes(PROMPTS, nearest, rows=len(ids) * config.nearest)
    unread_rows = (Rejected(**row) for row in unread.to_pylist())
    kinds = count_kinds([*unnamed, *left_out, *unread_rows])
    metrics.count_rejected(Stage.PREDICTIONS, kinds)
    return draft.publish(pictures=len(ids), rejected=kinds)


def list_pictures(folder: str) -> tuple[dict[str, Entry], list[Rejected], list[Rejected]]:
    """Return the pictures in a folder, and why other files in it are not predicted.

    Returns:
        each picture by its id, the file name without ending, in the order of the ids; pictures
        whose name cannot be an id of the submission, and, of those that share an id, all but the
        first; folders, and files that are no pictures, counted by ending.

    Raises:
        UserError: no folder, or no picture in it.
    """
    fs, path = open_uri(folder)
    if not folder or fs.get_file_info(path).type != pafs.FileType.Directory:
        raise UserError(f"pictures is {folder!r}: give a folder of pictures with --pictures")
    pictures, rejected = dict[str, Entry](), list[Rejected]()
    left_out = LeftOut("", f"pictures, which have the endings {', '.join(PICTURE_ENDS)}")
    for entry in listing.entries(folder):
        stem, ending = posixpath.splitext(entry.name)
        if entry.name.endswith("/"):
            left_out.add(entry.name, FOLDERS)
        elif not is_picture(entry.name) or not ending:
            left_out.add(entry.name)
        elif reason := entry.problem or _name_reason(stem, entry, pictures):
            rejected.append(Rejected(stem, reason))
        else:
            pictures[stem] = entry
    others = left_out.rows()
    if not pictures:
        reasons = "".join(f"\n  {row.reason}" for row in [*rejected, *others][:3])
        looked_for = f"looked for {', '.join(PICTURE_ENDS)}"
        raise UserError(f"{folder} contains no picture; {looked_for}{reasons}")
    reasons = "".join(f"; {row.reason}" for row in others)
    logger.info("predict: %d pictures%s", len(pictures), reasons)
    return dict(sorted(pictures.items())), rejected, others


def _name_reason(stem: str, entry: Entry, pictures: dict[str, Entry]) -> str | None:
    """Return why a file name without ending cannot be an id beside those of `pictures`."""
    try:
        check_id(stem)
    except UserError as error:
        return f"unusable name: {error}"
    if stem not in pictures:
        return None
    both = f"{entry.name} and {pictures[stem].name}"
    return f"repeated id: {both} would both be {stem!r}: rename one"


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
    done = draft.receipts()
    for number, start in enumerate(range(0, len(ids), PART)):
        part = ids[start : start + PART]
        if f"rejected-{number:05d}.parquet" not in done:
            rows = [{"id": name, "uri": uris[name]} for name in part]
            tables = _forward(config, make_model, load, rows, few=not needs_cluster(len(ids)))
            _write_part(draft, number, _gather(tables, predictor.name))
        progress.add(len(part))


def needs_cluster(pictures: int) -> bool:
    """Return True unless so many pictures are few, and are answered for in this process."""
    return not few_pictures(pictures)


def _forward(
    config: PredictConfig,
    make_model: ModelMaker,
    load: Callable[[dict[str, np.ndarray]], dict[str, Any]],
    rows: list[dict[str, str]],
    *,
    few: bool,
) -> Iterator[pa.Table]:
    """Yield `id`, `reason` and answers of the pictures `rows` (id, uri), in any order."""
    size = config.batch_size
    if few:
        batches = [_columns(rows[start : start + size]) for start in range(0, len(rows), size)]
        return forward_in_process(make_model, load, batches, size)
    from img2prompt.distributed.actors import forward_rows

    return forward_rows(rows, load, make_model, size)


def _columns(rows: list[dict[str, str]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


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


def _gather(batches: Iterable[pa.Table], name: str) -> pa.Table:
    """Return all rows, in the order of the ids, with the answers of the predictor `name`.

    A picture whose vector is non-finite gets a `reason`.
    """
    tables = []
    for batch in batches:
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
