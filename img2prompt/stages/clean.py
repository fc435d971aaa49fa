"""Which rows are fit to learn from: rows-*.parquet (one per file of the index), rejected.parquet.

Only text and numbers are read, no picture. Two pictures of one prompt are both kept.
"""

import hashlib
import logging

import pyarrow as pa

from img2prompt.artifact import Artifact, Draft
from img2prompt.config import CleanConfig
from img2prompt.data.images import size_reason
from img2prompt.data.prompts import normalise, prompt_id, reject_reason
from img2prompt.data.sources import Rejected, Row, count_kinds, rejected_table
from img2prompt.errors import UserError

logger = logging.getLogger(__name__)

STAGE = "clean"
SCHEMA = pa.schema([("id", pa.string()), ("prompt_id", pa.string()), ("prompt", pa.string())])


def run(config: CleanConfig, index: Artifact, out: str) -> Artifact:
    """Judge every row of the index; counts `rows` and `rejected` by kind.

    Raises:
        UserError: no row is fit.
    """
    draft = Draft.open(out, STAGE, config, {"index": index.fingerprint})
    if finished := draft.finished():
        return finished
    rows, rejected, seen = 0, [], set()
    for name in index.names("rows"):
        judged = [_judge(row, config, seen) for row in index.read_table(name).to_pylist()]
        fit = [row for row in judged if not isinstance(row, Rejected)]
        rejected += [row for row in judged if isinstance(row, Rejected)]
        draft.write_table(name, pa.Table.from_pylist(fit, schema=SCHEMA))
        rows += len(fit)
    draft.write_table("rejected.parquet", rejected_table(rejected))
    kinds = count_kinds(rejected)
    logger.info("clean: %d rows, rejected %s", rows, kinds)
    if not rows:
        raise UserError(f"no row is fit: {kinds}; change the limits under --clean")
    return draft.publish(rows=rows, rejected=kinds)


def _judge(row: Row, config: CleanConfig, seen: set[bytes]) -> Row | Rejected:
    """A row of SCHEMA, or why not; `seen` holds the pictures with prompts that came before."""
    prompt = normalise(row["prompt"])
    if reason := reject_reason(prompt, config):
        return Rejected(row["id"], reason)
    sides = row["width"], row["height"]
    if reason := size_reason(*sides, config.max_megapixels, config.min_side):
        return Rejected(row["id"], f"picture size: {reason}")
    key = _key(row["uri"], row["member"], prompt)
    if key in seen:
        where = f"{row['uri']} {row['member']}".strip()
        return Rejected(row["id"], f"repeated row: {where} with this prompt came before")
    seen.add(key)
    return {"id": row["id"], "prompt_id": prompt_id(prompt), "prompt": prompt}


def _key(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()
