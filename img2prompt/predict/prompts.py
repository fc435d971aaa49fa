"""Readable prompts: the known prompts that are nearest to a predicted vector."""

import csv
import io

import numpy as np
import pyarrow.compute as pc

from img2prompt.data.vectors import matrix
from img2prompt.errors import UserError
from img2prompt.predictors.neighbours import NearestPrompts
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.storage import read_bytes


def read_prompts(path: str) -> list[str]:
    """Return the distinct lines of a text file, in alphabetical order."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompts {path!r} cannot be read ({error}); allowed: UTF-8 text, a prompt a line"
        ) from None
    prompts = sorted({line.strip() for line in text.splitlines()} - {""})
    if not prompts:
        raise UserError(f"prompts {path!r} contains no text; allowed: one prompt a line")
    return prompts


def index_prompts(prompts: list[str], encoder: str, prepared: PreparedData) -> NearestPrompts:
    """Index the prompts that predictions are compared with: the user's, or those of training."""
    if prompts:
        from img2prompt.model.text import PromptEncoder  # imports sentence_transformers: seconds

        return NearestPrompts(PromptEncoder(encoder).encode(prompts), prompts)
    splits = prepared.groups.read_tables("rows", ["prompt_id", "kept", "split"])
    training = splits.filter((pc.field("split") == "train") & pc.field("kept"))["prompt_id"]
    table = prepared.targets.read_tables("rows", ["prompt_id", "prompt", "target"])
    table = table.filter(pc.field("prompt_id").isin(training.to_pylist()))
    return NearestPrompts(matrix(table["target"]), table["prompt"].to_pylist())


def nearest_csv(ids: list[str], vectors: np.ndarray, index: NearestPrompts, nearest: int) -> bytes:
    """Return a CSV file of the `nearest` prompts of each picture, with their cosines."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["imgId", "rank", "cosine", "prompt"])
    for name, matches in zip(ids, index.search(vectors, nearest), strict=True):
        for rank, (prompt, cosine) in enumerate(matches, start=1):
            writer.writerow([name, rank, f"{cosine:.4f}", prompt])
    return sink.getvalue().encode()
