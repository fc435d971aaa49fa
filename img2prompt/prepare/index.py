"""Which pictures exist and which prompt made each: rows-*, rejected-*.parquet.

Picture headers are read, no picture is copied. A source is listed in portions, each a Ray task of
its own that leaves one file in `listed/`; a killed run goes on with the portions that have none.
Portions in which pictures or archives could not be read are listed again: a disk may be mounted by
now. Then the rows are gathered in their order, and every further row of an id is rejected; the
order of the tasks does not show. If sources changed, an unfinished index is begun anew.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from img2prompt.artifact import Artifact, Draft
from img2prompt.config.prepare import IndexConfig, PrepareConfig
from img2prompt.config.sources import PictureSource
from img2prompt.data.sources import Source, identity, list_portion, portions
from img2prompt.data.sources.detect import resolve
from img2prompt.data.sources.pieces import in_pieces
from img2prompt.data.sources.rows import INDEX_SCHEMA, REJECTED_SCHEMA, Rejected, Row, printable
from img2prompt.data.sources.unique import Ids
from img2prompt.distributed import cluster
from img2prompt.distributed.progress import Progress
from img2prompt.distributed.tasks import run_bounded
from img2prompt.errors import UserError
from img2prompt.storage import delete_folder
from img2prompt.workspace import IndexFolder, Stage

logger = logging.getLogger(__name__)

ROWS_PER_FILE = 100_000
_SCHEMA = INDEX_SCHEMA.append(pa.field("reason", pa.string()))
"""Of a portion: rejected rows have a reason, and no more than an id beside it."""
_ROWS_AT_ONCE = 4096
_EXAMPLES = 3
_UNREAD = ("missing", "unreadable", "damaged")
"""How reasons begin that may be gone when it is tried again."""


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
    own, listed = IndexConfig(sources=config.sources), IndexFolder(out).portions
    sources = [resolve(s) if isinstance(s, PictureSource) else s for s in own.sources]
    inputs = {s.name: identity(s) for s in sources if isinstance(s, PictureSource)}
    draft = Draft.open(out, Stage.INDEX, own, inputs, renewable=True)
    made = draft.finished()
    if made is None:
        parts = Draft.open(listed, Stage.PORTIONS, own, inputs, renewable=True)
        _list(parts, sources)
        made = _gather(parts, draft)
    delete_folder(listed)
    return made


def _list(draft: Draft, sources: Iterable[Source]) -> None:
    """Make the portions that are not settled."""
    done = {name for name in draft.receipts() if _is_settled(draft, name)}
    listed = ((source, portion) for source in sources for portion in portions(source))
    make, cpus = ray.remote(_make).options(num_cpus=1), cluster.resources().cpus
    started = (
        make.remote(draft, _name(number), source, portion)
        for number, (source, portion) in enumerate(listed)
        if _name(number) not in done
    )
    progress = Progress("index", total=None)
    for rows in run_bounded(started, cpus):
        progress.add(rows)


def _name(number: int) -> str:
    return f"{number:07d}.parquet"


def _is_settled(draft: Draft, name: str) -> bool:
    try:
        reasons = draft.read_table(name, ["reason"])["reason"].drop_null().to_pylist()
    except OSError:  # a folder that was being deleted
        return False
    return not any(reason.startswith(_UNREAD) for reason in reasons)


def _make(draft: Draft, name: str, source: Source, portion: list[Any]) -> int:
    """Write all that a portion gives; returns how many rows that is."""
    sink, count = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(sink, _SCHEMA, compression="zstd") as writer:
        for rows in in_pieces(list_portion(source, portion), _ROWS_AT_ONCE):
            writer.write_table(pa.Table.from_pylist(list(map(_line, rows)), schema=_SCHEMA))
            count += len(rows)
    draft.write_bytes(name, sink.getvalue(), count)
    return count


def _line(row: Row | Rejected) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    return {"id": printable(row.id), "reason": printable(row.reason)}


def _gather(parts: Draft, draft: Draft) -> Artifact:
    """Write and publish the portions in their order, with the first row of each id."""
    draft.clear()  # an earlier gathering may have had more
    rows = _Pieces(draft, "rows", INDEX_SCHEMA)
    rejected = _Pieces(draft, "rejected", REJECTED_SCHEMA)
    kinds: Counter[str] = Counter()
    examples: list[str] = []
    for table in _with_repeats(parts):
        rows.add(table.filter(table["reason"].is_null()))
        lines = table.filter(table["reason"].is_valid())
        rejected.add(lines)
        kinds.update(reason.partition(":")[0] for reason in lines["reason"].to_pylist())
        told = lines.slice(0, _EXAMPLES - len(examples)).to_pylist()
        examples += [f"\n  {row['id']}: {row['reason']}" for row in told]
    rows.write()
    rejected.write()
    counts = dict(kinds.most_common())
    logger.info("index: %d rows, rejected %s", rows.count, counts)
    if not rows.count:
        names = [source["name"] for source in draft.config["sources"]]
        raise UserError(f"no row of {names} is usable: {counts}{''.join(examples)}")
    return draft.publish(rows=rows.count, rejected=counts)


def _with_repeats(parts: Draft) -> Iterator[pa.Table]:
    """All portions in pieces; further rows of an id have a reason, too."""
    ids = Ids()
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
            place = table.schema.get_field_index("reason")
            yield table.set_column(place, "reason", pa.array(reasons, pa.string()))


@dataclass
class _Pieces:
    """Rows on their way to `<name>-00000.parquet` and so on; little more than one is in memory."""

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
        """Write the pieces that have so many rows; the first one also when it has none."""
        whole = pa.concat_tables([self.schema.empty_table(), *self.waiting])
        while len(whole) >= least or not self._files:
            piece, whole = whole.slice(0, ROWS_PER_FILE), whole.slice(ROWS_PER_FILE)
            name = f"{self.name}-{self._files:05d}.parquet"
            self.draft.write_table(name, piece.combine_chunks())
            self._files += 1
        self.waiting = [whole]
