"""What every source gives: index rows, or rejected rows with a reason."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("prompt", pa.string()),
        ("uri", pa.string()),
        ("member", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("generator", pa.string()),
        ("seed", pa.int64()),
    ]
)
"""One picture: `uri` and `member` (a part of the file, or empty) are for `read_picture`, width and
height in pixels, `generator` may be empty and `seed` null."""

REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used."""

    id: str
    reason: str
    """`kind: detail`, where the detail names the value and what is allowed."""

    @property
    def kind(self) -> str:
        """What rejected rows are counted by."""
        return self.reason.partition(":")[0]


Row = dict[str, Any]
"""A row of INDEX_SCHEMA."""


def unread_picture(row_id: str, where: str, error: Exception) -> Rejected:
    """The rejected row of a picture at `where` that could not be read."""
    if isinstance(error, FileNotFoundError):
        return Rejected(row_id, f"missing picture: {where} does not exist")
    return Rejected(row_id, f"unreadable picture: {where}: {error}")


def unique_ids(rows: Iterable[Row | Rejected]) -> Iterator[Row | Rejected]:
    """The same rows, where every further row of an id is rejected."""
    seen = set()
    for row in rows:
        if isinstance(row, Rejected):
            yield row
        elif row["id"] in seen:
            yield Rejected(row["id"], f"repeated id: {row['id']!r}; allowed: one row an id")
        else:
            seen.add(row["id"])
            yield row


def rejected_table(rejected: list[Rejected]) -> pa.Table:
    """Rejected rows as a table of REJECTED_SCHEMA."""
    rows = [{"id": row.id, "reason": row.reason} for row in rejected]
    return pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)


def count_kinds(rejected: list[Rejected]) -> dict[str, int]:
    """Rejected rows by kind, the most frequent first."""
    return dict(Counter(row.kind for row in rejected).most_common())
