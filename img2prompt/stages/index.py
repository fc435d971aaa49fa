"""Which pictures exist and which prompt made each: rows-*, rejected-*.parquet.

Picture headers are read, no picture is copied. A source is listed in portions, each a Ray task of
its own that writes `rows-<portion>-<piece>` and then `rejected-<portion>`; a killed run goes on
with the portions that have not got so far. When all are there, every further row of an id is
moved to `rejected-repeats`. If sources changed meanwhile, an unfinished index is begun anew.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from img2prompt import runtime
from img2prompt.artifact import Artifact, Draft
from img2prompt.config import IndexConfig, PictureSource, PrepareConfig
from img2prompt.data.sources import (
    INDEX_SCHEMA,
    Ids,
    Rejected,
    Row,
    Source,
    identity,
    list_portion,
    portions,
    rejected_table,
    resolve,
)
from img2prompt.errors import UserError
from img2prompt.stages.progress import Progress
from img2prompt.stages.tasks import run_bounded

logger = logging.getLogger(__name__)

STAGE = "index"
ROWS_PER_FILE = 100_000
REPEATS = "rejected-repeats.parquet"
_ROWS_AT_ONCE = 4096
_EXAMPLES = 3


def check(config: PrepareConfig) -> None:
    """Raise UserError for a source that is not there or of no known format."""
    for source in config.sources:
        if isinstance(source, PictureSource):
            resolve(source)


def run(config: PrepareConfig, out: str) -> Artifact:
    """List all sources; counts `rows` and `rejected` by kind.

    Raises:
        UserError: a source cannot be read, or no row is usable.
    """
    own = IndexConfig(sources=config.sources)
    sources = [resolve(s) if isinstance(s, PictureSource) else s for s in own.sources]
    inputs = {s.name: identity(s) for s in sources if isinstance(s, PictureSource)}
    draft = Draft.open(out, STAGE, own, inputs, renewable=True)
    if finished := draft.finished():
        return finished
    _list(draft, sources)
    _reject_repeats(draft)
    return _publish(draft)


def _list(draft: Draft, sources: Iterable[Source]) -> None:
    """Make the portions that are not finished."""
    done = draft.receipts()
    listed = ((source, portion) for source in sources for portion in portions(source))
    make, cpus = ray.remote(_make).options(num_cpus=1), runtime.resources().cpus
    started = (
        make.remote(draft, number, source, portion)
        for number, (source, portion) in enumerate(listed)
        if _rejected_name(number) not in done
    )
    progress = Progress("index", total=None)
    for rows in run_bounded(started, cpus):
        progress.add(rows)


def _rejected_name(number: int) -> str:
    return f"rejected-{number:05d}.parquet"


def _make(draft: Draft, number: int, source: Source, portion: list[Any]) -> int:
    """Write the rows of a portion, then its rejected rows; returns how many there are."""
    rejected: list[Rejected] = []
    found, rows = _fit(list_portion(source, portion), rejected), 0
    for piece, table in enumerate(_tables(found)):
        draft.write_table(f"rows-{number:05d}-{piece:03d}.parquet", table)
        rows += table.num_rows
    draft.write_table(_rejected_name(number), rejected_table(rejected))
    return rows + len(rejected)


def _fit(found: Iterator[Row | Rejected], rejected: list[Rejected]) -> Iterator[Row]:
    """The rows that are usable; the others are added to `rejected`."""
    for row in found:
        if isinstance(row, Rejected):
            rejected.append(row)
        else:
            yield row


def _tables(rows: Iterator[Row]) -> Iterator[pa.Table]:
    """Tables of ROWS_PER_FILE rows, one at least; packed rows take a fifth of the memory."""
    first = True
    while True:
        piece, parts = islice(rows, ROWS_PER_FILE), []
        while part := list(islice(piece, _ROWS_AT_ONCE)):
            parts.append(pa.Table.from_pylist(part, schema=INDEX_SCHEMA))
        if not parts and not first:
            return
        yield pa.concat_tables(parts) if parts else INDEX_SCHEMA.empty_table()
        first = False


def _names(draft: Draft, kind: str) -> list[str]:
    return sorted(name for name in draft.receipts() if name.startswith(kind))


def _reject_repeats(draft: Draft) -> None:
    """Keep the first row of each id.

    The repeats are written before they leave their files, so that a kill loses none.
    """
    ids, fresh, repeats = Ids(), dict[str, np.ndarray](), list[str]()
    for name in _names(draft, "rows-"):
        own = draft.read_table(name, ["id"])["id"]
        first = ids.add(own.to_pylist())
        if not first.all():
            fresh[name] = first
            repeats += own.filter(pa.array(~first)).to_pylist()
    if REPEATS not in draft.receipts():
        told = (Rejected(i, f"repeated id: {i!r}; allowed: one row an id") for i in repeats)
        draft.write_table(REPEATS, rejected_table(told))
    for name, first in fresh.items():
        draft.write_table(name, draft.read_table(name).filter(pa.array(first)))


def _publish(draft: Draft) -> Artifact:
    rows = sum(receipt.rows for name, receipt in draft.receipts().items() if name[:4] == "rows")
    kinds: Counter[str] = Counter()
    examples: list[Rejected] = []
    for name in _names(draft, "rejected-"):
        rejected = [Rejected(**row) for row in draft.read_table(name).to_pylist()]
        kinds.update(row.kind for row in rejected)
        examples = [*examples, *rejected][:_EXAMPLES]
    logger.info("index: %d rows, rejected %s", rows, dict(kinds.most_common()))
    if not rows:
        names = [source["name"] for source in draft.config["sources"]]
        told = "".join(f"\n  {row.id}: {row.reason}" for row in examples)
        raise UserError(f"no row of {names} is usable: {dict(kinds.most_common())}{told}")
    return draft.publish(rows=rows, rejected=dict(kinds.most_common()))
