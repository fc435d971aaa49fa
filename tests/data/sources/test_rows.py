from io import BytesIO

import pyarrow as pa
from PIL import Image

from img2prompt.config.sources import SceneSource
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.sources.rows import (
    INDEX_SCHEMA,
    REJECTED_SCHEMA,
    Rejected,
    count_kinds,
    rejected_table,
)


def test_scenes_are_rows_with_pictures() -> None:
    rows = list(list_rows(SceneSource(prompts=3, pictures_per_prompt=2, size=48)))
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    table.validate(full=True)
    assert len(set(table["id"].to_pylist())) == table.num_rows == 6
    for row in rows:
        image = Image.open(BytesIO(next(read_pictures([(row["uri"], row["member"])]))))
        assert image.size == (row["width"], row["height"]) == (48, 48)


def test_rejected_rows_are_counted_by_kind() -> None:
    rejected = [Rejected("a", "few: 1"), Rejected("b", "odd: x: y"), Rejected("c", "odd")]
    assert count_kinds(rejected) == {"odd": 2, "few": 1}
    table = rejected_table(rejected)
    assert table.schema == REJECTED_SCHEMA
    assert table.to_pydict() == {"id": ["a", "b", "c"], "reason": ["few: 1", "odd: x: y", "odd"]}
    assert rejected_table([]).schema == REJECTED_SCHEMA
