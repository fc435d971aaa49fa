"""Which pictures exist and which prompt made each: rows-*, rejected-*.parquet.

Picture headers are read, no picture is copied. A killed run starts over: what the sources hold may
have changed since.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa

from img2prompt.artifact import RECEIPTS, Artifact, Draft, delete_folder, join
from img2prompt.config import IndexConfig, PictureSource, PrepareConfig
from img2prompt.data.sources import (
    INDEX_SCHEMA,
    Rejected,
    Row,
    identity,
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
    inputs = {s.name: identity(s) for s in own.sources if isinstance(s, PictureSource)}
    draft = Draft.open(out, STAGE, own, inputs)
    if finished := draft.finished():
        return finished
    delete_folder(join(out, RECEIPTS))
    rows = _Pieces(draft, "rows", _row_table)
    rejected = _Pieces(draft, "rejected", rejected_table)
    kinds: Counter[str] = Counter()
    examples: list[Rejected] = []
    for row in unique_ids(chain.from_iterable(map(list_rows, own.sources))):
        if isinstance(row, Rejected):
            rejected.add(row)
            kinds[row.kind] += 1
            examples = examples or [row]
        else:
            rows.add(row)
    rejected.write()
    rows.write()
    return _publish(draft, rows.count, dict(kinds.most_common()), examples)


def _publish(
    draft: Draft, rows: int, kinds: dict[str, int], examples: Iterable[Rejected]
) -> Artifact:
    logger.info("index: %d rows, rejected %s", rows, kinds)
    if not rows:
        told = "".join(f"\n  {row.id}: {row.reason}" for row in examples)
        raise UserError(f"no row of {[*draft.inputs]} is usable: {kinds}{told}")
    return draft.publish(rows=rows, rejected=kinds)


def _row_table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


@dataclass
class _Pieces:
    """Rows on their way to `<name>-00000.parquet` and so on; one piece is in memory."""

    draft: Draft
    name: str
    table: Callable[[list[Any]], pa.Table]
    count: int = 0
    waiting: list[Any] = field(default_factory=list)

    def add(self, row: Row | Rejected) -> None:
        self.waiting.append(row)
        if len(self.waiting) == ROWS_PER_FILE:
            self.write()

    def write(self) -> None:
        """Write what waits; the first piece also when it is empty, so that there is one."""
        if not self.waiting and self.count:
            return
        number = self.count // ROWS_PER_FILE
        self.draft.write_table(f"{self.name}-{number:05d}.parquet", self.table(self.waiting))
        self.count += len(self.waiting)
        self.waiting = []
        logger.info("index: %d %s so far", self.count, self.name)
