"""Sources -> index/: which pictures exist, and which prompt made each.

`rows-*.parquet` and `rejected-*.parquet`. Picture headers are read, no picture is copied. A source
is listed in portions. Each portion is a Ray task that writes one file to `listed/`; a killed run
resumes with the portions that have no file. Portions with unreadable pictures or archives are
listed again, because a disk may be mounted by then. Then the rows are gathered in the order of the
sources, whatever the order of the tasks, and repeated ids are rejected. If the sources changed, an
unfinished index starts over.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import IndexConfig, PrepareConfig
from img2prompt.config.sources import PictureSource
from img2prompt.data.hashed import HashedSet
from img2prompt.data.sources.base import Source
from img2prompt.data.sources.catalogue import identity, list_portion, portions
from img2prompt.data.sources.detect import resolve
from img2prompt.data.sources.portions import in_portions
from img2prompt.data.sources.rows import INDEX_SCHEMA, REJECTED_SCHEMA, Rejected, Row, printable
from img2prompt.distributed import cluster, metrics
from img2prompt.distributed.progress import Progress
from img2prompt.distributed.tasks import run_bounded
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.storage import delete_folder
from img2prompt.workspace import IndexFolder, Stage

logger = logging.getLogger(__name__)

ROWS_PER_FILE = 100_000
_SCHEMA = INDEX_SCHEMA.append(pa.field("reason", pa.string())).append(pa.field("count", pa.int64()))
"""Columns of a portion; rejected rows have only an id, a reason and the count they stand for."""
_ROWS_PER_WRITE = 4096
_EXAMPLES = 3
_UNREAD = ("missing", "unreadable", "damaged")
"""First words of reasons that may not apply at a second try."""


def check(config: PrepareConfig) -> None:
    """Check the sources before they are listed.

    Raises:
        UserError: a source does not exist, or its format is unknown.
    """
    for source in config.sources:
        if isinstance(source, PictureSource):
            resolve(source)


def run(config: PrepareConfig, out: str) -> Artifact:
    """List all sources; counts `rows` and `rejected` by kind.

    Raises:
        UserError: a source cannot be read, or no row is usable.
    """
    own, listed = IndexConfig(sources=config.sources), IndexFolder(out).portions
    sources = [resolve(s) if isinstance(s, PictureSource) else s for s in own.sources]
    inputs = {s.name: identity(s) for s in sources if isinstance(s, PictureSource)}
    draft = Draft.open(out, Stage.INDEX, own, inputs, renewable=True)
    index = draft.finished()
    if index is None:
        parts = Draft.open(listed, Stage.PORTIONS, own, inputs, renewable=True)
        _list_sources(parts, sources)
        index = _gather(parts, draft)
    delete_folder(listed)
    return index


def _list_sources(draft: Draft, sources: Iterable[Source]) -> None:
    """List the portions that are missing or had unreadable pictures."""
    done = {name for name in draft.receipts() if _is_settled(draft, name)}
    all_portions = ((source, portion) for source in sources for portion in portions(source))
    list_one = ray.remote(_list_portion).options(num_cpus=1)
    started = (
        list_one.remote(draft, _name(number), source, portion)
        for number, (source, portion) in enumerate(all_portions)
        if _name(number) not in done
    )
    progress = Progress("index", total=None)
    for rows in run_bounded(started, cluster.resources().cpus):
        progress.add(rows)


def _name(number: int) -> str:
    return f"{number:07d}.parquet"


def _is_settled(draft: Draft, name: str) -> bool:
    try:
        reasons = draft.read_table(name, ["reason"])["reason"].drop_null().to_pylist()
    except OSError:  # a folder that was being deleted
        return False
    return not any(reason.startswith(_UNREAD) for reason in reasons)


def _list_portion(draft: Draft, name: str, source: Source, portion: list[Any]) -> int:
    """Write the rows of a portion; return their number."""
    sink, count = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(sink, _SCHEMA, compression="zstd") as writer:
        for rows in in_portions(list_portion(source, portion), _ROWS_PER_WRITE):
            writer.write_table(pa.Table.from_pylist(list(map(_line, rows)), schema=_SCHEMA))
            count += len(rows)
    draft.write_bytes(name, sink.getvalue(), count)
    return count


def _line(row: Row | Rejected) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    return {"id": printable(row.id), "reason": printable(row.reason), "count": row.count}


def _gather(parts: Draft, draft: Draft) -> Artifact:
    """Write the portions to the index in their order, with the first row of each id; publish it."""
    draft.clear()  # a killed run may have written more files
    rows = _Pieces(draft, "rows", INDEX_SCHEMA)
    rejected = _Pieces(draft, "rejected", REJECTED_SCHEMA)
    kinds: Counter[str] = Counter()
    examples: list[str] = []
    for table in _with_repeats(parts):
        rows.add(table.filter(table["reason"].is_null()))
        refused = table.filter(table["reason"].is_valid())
        rejected.add(refused)
        for row in map(_rejected, refused.select(_columns_of(refused)).to_pylist()):
            kinds[row.kind] += row.count
        shown = refused.slice(0, _EXAMPLES - len(examples)).to_pylist()
        examples += [f"\n  {row['id']}: {row['reason']}" for row in shown]
    rows.write()
    rejected.write()
    counts = dict(kinds.most_common())
    logger.info("index: %d rows, rejected %s", rows.count, counts)
    metrics.count_rejected(Stage.INDEX, counts)
    if not rows.count:
        names = [source["name"] for source in draft.config["sources"]]
        raise UserError(f"no row of {names} is usable: {counts}{''.join(examples)}")
    return draft.publish(rows=rows.count, rejected=counts)


def _columns_of(refused: pa.Table) -> list[str]:
    """Return the columns of rejected rows; portions of the version before have no `count`."""
    return [name for name in ("id", "reason", "count") if name in refused.column_names]


def _rejected(cells: dict[str, Any]) -> Rejected:
    return Rejected(cells["id"], cells["reason"], cells.get("count") or 1)


def _with_repeats(parts: Draft) -> Iterator[pa.Table]:
    """All portions in pieces; further rows of an id have a reason, too."""
    ids = HashedSet()
    for name in sorted(parts.receipts()):
        whole = parts.read_table(name)
        for start in range(0, len(whole), ROWS_PER_FILE):
            table = whole.slice(start, ROWS_PER_FILE)
            reasons = table["reason"].to_pylist()
            usable = [row for row, reason in enumerate(reasons) if reason is None]
            names = table["id"].take(pa.array(usable, pa.int64())).to_pylist()
            for row, row_id, new in zip(usable, names, ids.add(names), strict=True):
                if not new:
                    reasons[row] = f"repeated id: {row_id!r}; allowed: one row an id"
            column = table.schema.get_field_index("reason")
            yield table.set_column(column, "reason", pa.array(reasons, pa.string()))


@dataclass
class _Pieces:
    """Writes rows to `<name>-00000.parquet` and so on; memory is about that of one file."""

    draft: Draft
    name: str
    schema: pa.Schema
    count: int = 0
    waiting: list[pa.Table] = field(default_factory=list)
    _files: int = 0

    def add(self, table: pa.Table) -> None:
        self.count += len(table)
        self.waiting.append(table.select(self.schema.names))
        if sum(map(len, self.waiting)) >= ROWS_PER_FILE:
            self.write(ROWS_PER_FILE)

    def write(self, least: int = 1) -> None:
        """Write files while `least` rows are left, and at least one file, which may be empty."""
        whole = pa.concat_tables([self.schema.empty_table(), *self.waiting])
        while len(whole) >= least or not self._files:
            piece, whole = whole.slice(0, ROWS_PER_FILE), whole.slice(ROWS_PER_FILE)
            name = f"{self.name}-{self._files:05d}.parquet"
            self.draft.write_table(name, piece.combine_chunks())
            self._files += 1
        self.waiting = [whole]
