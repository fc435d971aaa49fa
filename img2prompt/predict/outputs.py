"""Files for people and other programs that predictions are written to."""

import json
import logging
import posixpath
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from img2prompt.config.predict import PredictConfig
from img2prompt.data.sources.rows import Rejected
from img2prompt.distributed.progress import Progress
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.predict.prompts import SCHEMA, KnownPrompts, ReadablePrompts
from img2prompt.predict.sheets import sheet
from img2prompt.predict.submission import submission_rows, write_submission
from img2prompt.storage import exists, join, read_bytes, write_bytes

logger = logging.getLogger(__name__)

SUBMISSION = "submission.csv"
PROMPTS = "prompts.csv"
BESIDE = "beside.json"
"""Names of the text files that were written beside the pictures."""
LEFT_OUT = "left_out.json"
"""Rejected rows of the listing before texts were written beside the pictures."""
PROMPTS_PART = 1000
"""Pictures in one file of readable prompts."""
UNKNOWN = "unknown"
"""Kind of prompt of a picture whose confidence is below the limit."""


def find_prompts(
    config: PredictConfig,
    known: KnownPrompts,
    ids: Sequence[str],
    vectors: np.ndarray,
    confidences: np.ndarray | None,
    draft: Draft,
) -> pa.Table:
    """Return readable prompts (`prompts.SCHEMA`) of all pictures, written part by part.

    A picture with a confidence below `config.abstain` gets one row of the kind UNKNOWN.
    """
    starts = {
        f"prompts-{number:05d}.parquet": start
        for number, start in enumerate(range(0, len(ids), PROMPTS_PART))
    }
    sure = np.ones(len(ids), bool) if confidences is None else confidences >= config.abstain
    done = draft.receipts()
    if missing := [name for name in starts if name not in done]:
        readable = ReadablePrompts(
            known, config.texts, config.nearest, config.compose, config.encoder, config.csls
        )
        progress = Progress("prompts", total=len(ids))
        for name in missing:
            rows = np.arange(starts[name], min(starts[name] + PROMPTS_PART, len(ids)))
            answered = rows[sure[rows]]
            prompts = readable.find([ids[row] for row in answered], vectors[answered])
            unknown = [{"id": ids[row], "kind": UNKNOWN, "rank": 1} for row in rows[~sure[rows]]]
            table = pa.concat_tables([prompts, pa.Table.from_pylist(unknown, schema=SCHEMA)])
            draft.write_table(name, table)
            progress.add(len(rows))
    return pa.concat_tables([draft.read_table(name) for name in starts])


def write_prompts(
    draft: Draft, prompts: pa.Table, ids: Sequence[str], confidences: np.ndarray | None
) -> None:
    """Write the readable prompts as a sheet, with the confidences where there are any."""
    confidence = dict(zip(ids, confidences if confidences is not None else [], strict=False))
    rows = [
        [row["id"], row["kind"], row["rank"], _number(row["cosine"]), row["prompt"] or ""]
        + ([_number(confidence[row["id"]])] if confidence else [])
        for row in prompts.to_pylist()
    ]
    columns = ["picture", "kind", "rank", "cosine", "prompt"]
    columns += ["confidence"] if confidence else []
    draft.write_bytes(PROMPTS, sheet(columns, rows), rows=len(rows))


def _number(value: float | None) -> float | str:
    return "" if value is None else round(float(value), 4)


def best_prompts(prompts: pa.Table) -> dict[str, dict]:
    """Return each picture's row with its first prompt of the last kind, by id; none if unknown."""
    firsts = prompts.filter((pc.field("rank") == 1) & (pc.field("kind") != UNKNOWN))
    return {row["id"]: row for row in firsts.to_pylist()}


def write_texts(config: PredictConfig, draft: Draft, prompts: pa.Table) -> None:
    """Write the best prompt of each picture as one JSON-lines or Parquet file, if configured."""
    rows = [
        {"picture": row["id"], "prompt": row["prompt"], "cosine": row["cosine"]}
        for row in best_prompts(prompts).values()
    ]
    if config.captions == "jsonl":
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        draft.write_bytes("captions.jsonl", lines.encode(), rows=len(rows))
    elif config.captions == "parquet":
        draft.write_table("captions.parquet", pa.Table.from_pylist(rows))


def text_uris(uris: Mapping[str, str], draft: Draft) -> dict[str, str]:
    """Return the URI of the text file beside each picture: `a.txt` beside `a.png`.

    Raises:
        UserError: two pictures would share a text, or a text exists that this prediction did not
            write.
    """
    texts = {name: posixpath.splitext(uri)[0] + ".txt" for name, uri in uris.items()}
    owner = dict[str, str]()
    for name, text in texts.items():
        if text in owner:
            raise UserError(f"{owner[text]!r} and {name!r} would both get {text}: rename one")
        owner[text] = name
    if BESIDE not in draft.receipts():
        existing = [text for text in texts.values() if exists(text)]
        if existing:
            raise UserError(
                f"{len(existing)} texts exist beside the pictures, such as {existing[0]}: move "
                "them away, or choose other --captions"
            )
    return texts


def keep_left_out(rejected: Sequence[Rejected], draft: Draft) -> list[Rejected]:
    """Return the rejected rows of the first listing: a later one counts our own texts too."""
    if LEFT_OUT not in draft.receipts():
        rows = [asdict(row) for row in rejected]
        draft.write_bytes(LEFT_OUT, json.dumps(rows, indent=2).encode(), rows=len(rows))
    return [Rejected(**row) for row in json.loads(read_bytes(join(draft.uri, LEFT_OUT)))]


def write_beside(draft: Draft, prompts: pa.Table, texts: Mapping[str, str]) -> None:
    """Write the best prompt of each picture into its text file.

    Raises:
        UserError: a file with another text exists; nothing is written then.
    """
    contents = {
        texts[name]: (row["prompt"] + "\n").encode() for name, row in best_prompts(prompts).items()
    }
    missing = [text for text in contents if not exists(text)]
    for text in contents.keys() - missing:
        if read_bytes(text) != contents[text]:
            raise UserError(
                f"{text} exists with another text than this prediction's: move it away and start "
                "again"
            )
    draft.write_bytes(BESIDE, json.dumps(list(contents), indent=2).encode())
    for text in missing:
        write_bytes(text, contents[text])


def submit(draft: Draft, ids: Sequence[str], vectors: np.ndarray, sample: Sequence[str]) -> str:
    """Write the submission; return an empty text, or why the pictures cannot be submitted."""
    try:
        rows = submission_rows(ids, sample)
    except UserError as error:
        logger.warning("%s is not written: %s", SUBMISSION, error)
        return str(error)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / SUBMISSION)
        write_submission(path, list(rows), vectors[list(rows.values())])
        with pa.memory_map(path) as file:
            draft.write_bytes(SUBMISSION, file.read_buffer(), rows=vectors.size)
    return ""
