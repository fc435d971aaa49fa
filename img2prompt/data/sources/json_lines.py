"""A JSON lines file that lists pictures and prompts, one object a line."""

import io
import json
from collections.abc import Iterator
from functools import partial

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources.rows import Rejected
from img2prompt.data.sources.tables import Record, Table, has_table, table_format

ENDS = (".jsonl", ".ndjson", ".jsonl.gz")


def read_records(
    text: io.TextIOBase, source: PictureSource, needed: tuple[tuple[str, ...], ...]
) -> Iterator[Record | Rejected]:
    """Yield each object's position (`<source>/line <number>`) and its values by key.

    `needed` is not checked: each line has keys of its own.
    """
    for number, line in enumerate(text, start=1):
        where = f"{source.name}/line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Rejected(where, f"bad JSON: {error}; allowed: one object a line")
            continue
        if isinstance(record, dict):
            yield where, record
        else:
            yield Rejected(where, f"bad JSON: {line[:40]!r}; allowed: one object a line")


FORMAT = table_format(
    "jsonl",
    needs="a .jsonl (one JSON object a line) with the keys file_name and prompt",
    fits=partial(has_table, ends=ENDS),
    table=Table(ENDS, read_records),
    overrides=("metadata",),
)
