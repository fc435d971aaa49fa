"""Which pictures exist and which prompt made each: rows-*.parquet, rejected.parquet.

Picture headers are read, no picture is copied. A killed run starts over: what the sources hold may
have changed since.
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import pyarrow as pa

from img2prompt.artifact import RECEIPTS, Artifact, Draft, delete_folder, join
from img2prompt.config import CsvSource, IndexConfig, PrepareConfig
from img2prompt.data.sources import (
    INDEX_SCHEMA,
    Rejected,
    Row,
    count_kinds,
    csv_folder,
    list_rows,
    rejected_table,
    unique_ids,
)
from img2prompt.errors import UserError

logger = logging.getLogger(__name__)

STAGE = "index"
ROWS_PER_FILE = 100_000


def run(config: PrepareConfig, out: str) -> Artifact:
    """List all sources; counts `rows` and `rejected` by kind.

    Raises:
        UserError: a source cannot be read, or no row is usable.
    """
    own = IndexConfig(sources=config.sources)
    inputs = {s.name: csv_folder.digest(s) for s in own.sources if isinstance(s, CsvSource)}
    draft = Draft.open(out, STAGE, own, inputs)
    if finished := draft.finished():
        return finished
    delete_folder(join(out, RECEIPTS))
    rejected: list[Rejected] = []
    listed = unique_ids(chain.from_iterable(map(list_rows, own.sources)))
    rows = _write_rows(draft, _accepted(listed, rejected))
    draft.write_table("rejected.parquet", rejected_table(rejected))
    kinds = count_kinds(rejected)
    logger.info("index: %d rows, rejected %s", rows, kinds)
    if not rows:
        examples = "".join(f"\n  {row.id}: {row.reason}" for row in rejected[:3])
        raise UserError(f"no row of {[s.name for s in own.sources]} is usable: {kinds}{examples}")
    return draft.publish(rows=rows, rejected=kinds)


def _accepted(rows: Iterable[Row | Rejected], rejected: list[Rejected]) -> Iterator[Row]:
    """The usable rows; the others are added to `rejected`."""
    for row in rows:
        if isinstance(row, Rejected):
            rejected.append(row)
        else:
            yield row


def _write_rows(draft: Draft, rows: Iterator[Row]) -> int:
    count = 0
    while chunk := list(islice(rows, ROWS_PER_FILE)):
        name = f"rows-{count // ROWS_PER_FILE:05d}.parquet"
        draft.write_table(name, pa.Table.from_pylist(chunk, schema=INDEX_SCHEMA))
        count += len(chunk)
        logger.info("index: %d rows so far", count)
    return count
