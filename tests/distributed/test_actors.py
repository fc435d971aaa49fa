from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from torch import Tensor, nn

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import ShardConfig
from img2prompt.data import images
from img2prompt.data.shards import SCHEMA
from img2prompt.data.vectors import matrix, to_matrix, vector_column
from img2prompt.distributed.actors import Pool, forward_shards, forward_split
from img2prompt.distributed.forward import ModelMaker, forward_split_in_process
from img2prompt.draft import Draft
from img2prompt.model.views import ViewVectors

pytestmark = pytest.mark.ray

COUNTS = {"train": [9, 0, 14, 1], "val": [5]}


def make_means(*views: str) -> ModelMaker:
    """Maker of a model from pixels (B, S, S, 3) to twice their mean colours (B, 3) in each view."""

    # Workers cannot import this file; a class inside a function travels to them whole.
    class Means(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.float().mean(dim=(1, 2)) * 2

    return lambda device: ViewVectors(Means(), views or ["plain"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Pictures of one colour, which encodes split and row; one file is empty."""
    draft = Draft.open(str(tmp_path_factory.mktemp("shards")), "shards", ShardConfig(size=16), {})
    for split, counts in COUNTS.items():
        for number, rows in enumerate(counts):
            start = sum(counts[:number])
            levels = [(start + n, len(split), number) for n in range(rows)]
            pictures = [
                images.encode(np.full((16, 16, 3), level, np.uint8), "png") for level in levels
            ]
            ids = [f"{split}/{start + n}" for n in range(rows)]
            targets = vector_column(np.zeros((rows, 384)))
            table = pa.table([ids, ids, ids, pictures, targets], schema=SCHEMA)
            draft.write_table(f"{split}/{number:05d}.parquet", table, rows_per_group=3)
    return draft.publish()


def expected(split: str) -> list[tuple[int, int, int]]:
    counts = COUNTS[split]
    numbers = [number for number, rows in enumerate(counts) for _ in range(rows)]
    return [(2 * row, 2 * len(split), 2 * n) for row, n in enumerate(numbers)]


def test_a_split_comes_in_the_order_of_its_rows(cluster, shards: Artifact) -> None:
    table = forward_split(shards, "train", Pool(make_model=make_means(), batch_size=4))
    assert table.column_names == ["id", "vector"]
    assert table["id"].to_pylist() == [f"train/{row}" for row in range(sum(COUNTS["train"]))]
    vectors = to_matrix(table["vector"])
    np.testing.assert_array_equal(vectors, expected("train"))
    assert vectors.dtype == np.float32
    in_process = forward_split_in_process(shards, "train", make_means(), batch_size=4)
    assert in_process.column_names == ["id", "vector"]
    assert in_process["id"].equals(table["id"])
    np.testing.assert_array_equal(to_matrix(in_process["vector"]), vectors)


def test_each_file_comes_once_and_whole(cluster, shards: Artifact) -> None:
    names = shards.names("train/") + shards.names("val/")
    pool = Pool(make_model=make_means("plain", "flip"), batch_size=100, workers=1)
    times = pool.times("means", 29)
    stream = list(forward_shards(shards, names, pool, times))
    tables = dict(stream)
    assert len(stream) == len(tables)
    assert set(tables) == {name for name in names if shards.files[name].rows}
    for name, table in tables.items():
        assert table["id"].to_pylist() == shards.read_table(name)["id"].to_pylist()
        assert to_matrix(table["vector"]).shape == (len(table), 6)
    report = times.log()
    assert report["rows"] == 29
    assert all(report["busy_s"][step] > 0 for step in ("read", "decode", "forward"))
    assert report["bottleneck"] in report["busy_s"]


def test_no_files_give_no_rows(cluster, shards: Artifact) -> None:
    pool = Pool(make_model=make_means(), batch_size=4)
    assert list(forward_shards(shards, [], pool, pool.times("means", 0))) == []


def test_a_damaged_picture_in_a_shard_stops_the_run(cluster, tmp_path: Path) -> None:
    draft = Draft.open(str(tmp_path), "shards", ShardConfig(size=16), {})
    table = pa.table(
        [["a"], ["a"], ["a"], [b"no picture"], vector_column(np.zeros((1, 384)))], schema=SCHEMA
    )
    draft.write_table("val/00000.parquet", table)
    with pytest.raises(Exception, match="not a picture"):
        forward_split(draft.publish(), "val", Pool(make_model=make_means(), batch_size=4))


def test_vectors_in_any_encoding_become_a_matrix() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    fixed = pa.chunked_array([vector_column(rows[:1]), vector_column(rows[1:])])
    lists = pa.chunked_array([pa.array(rows.tolist(), pa.list_(pa.float32()))])
    for column in (fixed, lists):
        np.testing.assert_array_equal(to_matrix(column), rows)
    np.testing.assert_array_equal(matrix(fixed), rows)
    assert to_matrix(pa.chunked_array([], pa.list_(pa.float32()))).shape == (0, 0)
