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

from img2prompt.artifact import Artifact, Draft
from img2prompt.config import IndexConfig, PictureSource, PrepareConfig
from img2prompt.data.sources import (
    INDEX_SCHEMA,
    Rejected,
    Row,
    identity,
    list_rows,
    rejected_table,
    resolve,
    unique_ids,
)
from img2prompt.errors import UserError

logger = logging.getLogger(__name__)

STAGE = "index"
ROWS_PER_FILE = 100_000
_ROWS_AT_ONCE = 4096


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
    draft = Draft.open(out, STAGE, own, inputs, starts_over=True)
    if finished := draft.finished():
        return finished
    rows = _Pieces(draft, "rows", _row_table)
    rejected = _Pieces(draft, "rejected", rejected_table)
    kinds: Counter[str] = Counter()
    examples: list[Rejected] = []
    for row in unique_ids(chain.from_iterable(map(list_rows, sources))):
        if isinstance(row, Rejected):
            rejected.add(row)
            kinds[row.kind] += 1
            examples = [*examples, row][:3]
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
        names = [source["name"] for source in draft.config["sources"]]
        told = "".join(f"\n  {row.id}: {row.reason}" for row in examples)
        raise UserError(f"no row of {names} is usable: {kinds}{told}")
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
    loose: list[Any] = field(default_factory=list)
    packed: list[pa.Table] = field(default_factory=list)
    """The same rows as tables, in which they are a fifth as large."""

    def add(self, row: Row | Rejected) -> None:
        self.loose.append(row)
        self.count += 1
        if len(self.loose) >= _ROWS_AT_ONCE:
            self._pack()
        if self.count % ROWS_PER_FILE == 0:
            self.write()

    def write(self) -> None:
        """Write what waits; the first piece also when it is empty, so that there is one."""
        self._pack()
        piece = pa.concat_tables(self.packed)
        self.packed = []
        if piece.num_rows or not self.count:
            number = max(0, self.count - 1) // ROWS_PER_FILE
            self.draft.write_table(f"{self.name}-{number:05d}.parquet", piece)
            logger.info("index: %d %s so far", self.count, self.name)

    def _pack(self) -> None:
        self.packed.append(self.table(self.loose))
        self.loose = []
