"""Pictures and a predictor -> predictions/: vectors, readable prompts, and a submission.

`vectors-*.parquet` (id, vector, and text and confidence where the predictor gives them),
`prompts-*.parquet` and `prompts.csv` (readable prompts with their cosines), `submission.csv`
(Kaggle's format, where the file names can be its ids), `rejected.parquet` (id, reason). A picture's
id is its path in the folder. Pictures are predicted in parts, so a killed run resumes with the
parts that are missing.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from img2prompt.artifact import Artifact, fingerprint_of
from img2prompt.config.predict import PredictConfig
from img2prompt.data import images
from img2prompt.data.sources import files
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
from img2prompt.model.text import PromptEncoder
from img2prompt.predict import outputs
from img2prompt.predict.answers import AnswerColumns, read_answers
from img2prompt.predict.pictures import Pictures, list_pictures
from img2prompt.predict.prompts import (
    KnownPrompts,
    phrases_fingerprint,
    read_prompts,
    training_prompts,
)
from img2prompt.predict.submission import read_submission, submission_rows
from img2prompt.predictors.base import PredictorSpec
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.workspace import Stage

logger = logging.getLogger(__name__)

REJECTED = "rejected.parquet"
NONFINITE = "non-finite answer: the predictor's vector for this picture has NaN or infinite values"
"""Reason in REJECTED."""
PART = 10_000
"""Pictures in one file of vectors."""


def run(
    config: PredictConfig, predictor: PredictorSpec, prepared: PreparedData, out: str
) -> Artifact:
    """Predict all pictures; counts `pictures`, and `rejected` by kind.

    The count `submission` is empty when the submission was written, otherwise the reason.

    Raises:
        UserError: the pictures, prompts or sample cannot be used, the predictor is for other
            shards or has no confidences for `abstain`, or texts exist that this did not write.
    """
    if config.abstain > -1 and not predictor.has_confidences():
        raise UserError(
            f"abstain is {config.abstain:g}, but {predictor.name!r} has no confidences; allowed: "
            "-1, or a run of jobs/calibrate.py"
        )
    pictures = list_pictures(config.pictures)
    prompts = read_prompts(config.prompts) if config.prompts else []
    sample = read_submission(config.sample)[0] if config.sample else []
    if sample:
        submission_rows(list(pictures.uris), sample)
    inputs = _fingerprints(config, predictor, prepared, pictures, prompts, sample)
    check = functools.partial(predictor.check, prepared.shards)
    draft = Draft.open(out, Stage.PREDICTIONS, config, inputs, check, free=("batch_size",))
    if finished := draft.finished():
        return finished
    beside = outputs.text_uris(pictures.uris, draft) if config.captions == "beside" else {}
    _predict_parts(config, predictor, prepared.shards, pictures.uris, draft)
    left_out = outputs.keep_left_out(pictures.rejected, draft) if beside else pictures.rejected
    ids, vectors, confidences, unread = _collect(draft)
    rejected = pa.concat_tables([rejected_table(left_out), unread])
    draft.write_table(REJECTED, rejected)
    omitted = "no picture was predicted"
    if ids and config.texts:
        own = replace(config, encoder=config.encoder or prepared.encoder)
        known = _known_prompts(own, prompts, prepared)
        table = outputs.find_prompts(own, known, ids, vectors, confidences, draft)
        outputs.write_prompts(draft, table, ids, confidences)
        outputs.write_texts(config, draft, table)
        if beside:
            outputs.write_beside(draft, table, beside)
    if ids:
        omitted = outputs.submit(draft, ids, vectors, sample)
    kinds = count_kinds([*left_out, *(Rejected(**row) for row in unread.to_pylist())])
    metrics.count_rejected(Stage.PREDICTIONS, kinds)
    return draft.publish(pictures=len(ids), rejected=kinds, submission=omitted)


def _fingerprints(
    config: PredictConfig,
    predictor: PredictorSpec,
    prepared: PreparedData,
    pictures: Pictures,
    prompts: list[str],
    sample: list[str],
) -> dict[str, str]:
    """Return what the predictions depend on, by name."""
    inputs = {
        **predictor.fingerprints(),
        "pictures": pictures.fingerprint,
        "prompts": fingerprint_of(prompts) if prompts else prepared.groups.fingerprint,
        **phrases_fingerprint(config),
    }
    return {**inputs, "sample": fingerprint_of(sample)} if sample else inputs


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


def _collect(draft: Draft) -> tuple[list[str], np.ndarray, np.ndarray | None, pa.Table]:
    """Return ids, vectors (N, 384), confidences (N,) if predicted, and rejected rows."""
    names = sorted(draft.receipts())
    vectors = pa.concat_tables([draft.read_table(n) for n in names if n.startswith("vectors-")])
    rejected = pa.concat_tables([draft.read_table(n) for n in names if n.startswith("rejected-")])
    has_confidences = "confidence" in vectors.column_names
    confidences = vectors["confidence"].to_numpy() if has_confidences else None
    return vectors["id"].to_pylist(), matrix(vectors["vector"]), confidences, rejected


def _known_prompts(
    config: PredictConfig, prompts: list[str], prepared: PreparedData
) -> KnownPrompts:
    if prompts:
        return KnownPrompts(prompts, PromptEncoder(config.encoder).encode(prompts))
    return training_prompts(prepared)


def summary(predictions: Artifact, limit: int = 8) -> list[list[object]]:
    """Return table rows: the best prompt of the first pictures, with its cosine."""
    names = predictions.names("prompts-")
    best = outputs.best_prompts(predictions.read_table(names[0])) if names else {}
    return [[row["id"], row["prompt"], row["cosine"]] for row in [*best.values()][:limit]]


def rejected_summary(predictions: Artifact, limit: int = 8) -> list[list[object]]:
    """Return table rows: the first pictures that could not be read, with the reason."""
    rows = predictions.read_table(REJECTED).slice(0, limit).to_pylist()
    return [[row["id"], row["reason"]] for row in rows]
