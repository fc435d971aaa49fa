import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import FeaturesConfig, ShardConfig
from img2prompt.data import shards as shards_module
from img2prompt.data.order import epoch_batches, worker_share
from img2prompt.data.shards import SCHEMA, FeatureRows, ShardRows, check_size, spaced_rows
from img2prompt.data.vectors import vector_column
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.storage import open_uri

SIDE = 16


def table_of(rng: np.random.Generator, split: str, start: int, rows: int) -> pa.Table:
    pictures = []
    for _ in range(rows):
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(sink, "PNG")
        pictures.append(sink.getvalue())
    ids = [f"{split}/{number}" for number in range(start, start + rows)]
    targets = vector_column(rng.normal(size=(rows, 384)))
    columns = [ids, ids, ["drawn"] * rows, pictures, targets]
    return pa.table(columns, schema=SCHEMA)


def write(folder: str, files: dict[str, list[int]], rows_per_group: int) -> Artifact:
    """Shards with so many rows a file."""
    draft = Draft.open(folder, "shards", ShardConfig(size=SIDE, rows_per_group=rows_per_group), {})
    rng = np.random.default_rng(0)
    for split, counts in files.items():
        for number, rows in enumerate(counts):
            table = table_of(rng, split, sum(counts[:number]), rows)
            draft.write_table(f"{split}/{number:05d}.parquet", table, rows_per_group)
    return draft.publish()


FILES = {"train": [10, 7, 0, 1], "val": [5], "test": [0]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write(str(tmp_path_factory.mktemp("shards") / "out"), FILES, rows_per_group=4)


def expected(shards: Artifact, split: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids, pixels and targets of a split, read by pyarrow and Pillow alone."""
    fs, path = open_uri(shards.uri)
    paths = sorted(info.path for info in fs.get_file_info(pa.fs.FileSelector(f"{path}/{split}")))
    table = pa.concat_tables([pq.ParquetFile(fs.open_input_file(path)).read() for path in paths])
    pixels = [np.array(Image.open(io.BytesIO(data))) for data in table["image"].to_pylist()]
    return table["id"].to_pylist(), np.array(pixels), np.array(table["target"].to_pylist())


def assert_fetched(shards: Artifact, split: str, rows: list[int]) -> None:
    ids, pixels, targets = expected(shards, split)
    batch = ShardRows(shards, split).fetch(np.array(rows))
    assert batch.ids == [ids[row] for row in rows]
    assert batch.inputs.dtype == np.uint8
    np.testing.assert_array_equal(batch.inputs, pixels[rows])
    assert batch.targets.dtype == np.float32
    np.testing.assert_array_equal(batch.targets, targets[rows].astype(np.float32))


@pytest.mark.parametrize(
    "rows", [list(range(18)), [17], [9, 10, 16, 17], [3, 0, 3, 12, 16], list(range(17, -1, -1))]
)
def test_fetched_rows_are_those_of_the_table(shards: Artifact, rows: list[int]) -> None:
    assert_fetched(shards, "train", rows)


def test_rows_come_from_another_file_system_too() -> None:
    made = write("fsspec+memory://test-shards/out", FILES, rows_per_group=3)
    assert_fetched(made, "train", [17, 4, 11])
    assert_fetched(made, "val", [4, 0])


def test_group_sizes_are_those_of_the_files(shards: Artifact) -> None:
    rows = ShardRows(shards, "train")
    assert rows.group_sizes.tolist() == [4, 4, 2, 4, 3, 1]
    assert len(rows) == 18
    assert (len(ShardRows(shards, "val")), len(ShardRows(shards, "test"))) == (5, 0)


def test_spaced_rows_run_from_the_first_to_the_last() -> None:
    assert spaced_rows([3, 0, 4, 2], 5) == [(0, 0), (0, 2), (2, 1), (2, 3), (3, 1)]
    assert spaced_rows([2, 1], 9) == [(0, 0), (0, 1), (1, 0)]
    assert spaced_rows([5, 5], 1) == [(0, 0)]


def test_fetched_arrays_are_writable(shards: Artifact) -> None:
    rows = ShardRows(shards, "val")
    batch = rows.fetch(np.arange(5))
    targets = batch.targets.copy()
    batch.targets[:] = 0
    batch.inputs[:] = 0
    again = rows.fetch(np.arange(5))
    np.testing.assert_array_equal(again.targets, targets)
    assert again.inputs.any()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the row groups that are read, in bytes."""
    found: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, number: int, **options) -> pa.Table:
        found.append(file.metadata.row_group(number).total_byte_size)
        return read_row_group(file, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("many")
    return write(str(folder), {"train": [200, 200, 150]}, rows_per_group=3)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_workers_read_each_byte_about_once_an_epoch(
    many: Artifact, reads: list[int], workers: int
) -> None:
    """Shares of a common order, as it was before there were lanes, took as many times the bytes."""
    readers = [ShardRows(many, "train", threads=2) for _ in range(workers)]
    batches = epoch_batches(readers[0].group_sizes, 0, 0, 8)
    ids: list[str] = []
    for batch in batches:
        for rank, rows in enumerate(readers):
            ids += rows.fetch(worker_share(batch, rank, workers)).ids
            assert len(rows._open) <= 200 / workers + 10
    assert len(ids) == len(set(ids)) == 544
    files = [pq.ParquetFile(many.path(name)).metadata for name in many.names("train/")]
    groups = [file.row_group(n) for file in files for n in range(file.num_row_groups)]
    total = sum(group.total_byte_size for group in groups)
    assert len(groups) == 184
    assert sum(reads) <= 1.1 * total
    assert len(reads) <= 1.1 * len(groups)
    assert sum(len(rows._open) for rows in readers) <= 2 * workers + 4  # the rest was let go


def test_few_files_stay_open(many: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "OPEN_FILES", 2)
    rows = ShardRows(many, "train")
    found = [rows.fetch(np.array([start, 540 - start])).ids for start in range(0, 540, 90)]
    assert [ids[0] for ids in found] == [f"train/{n}" for n in range(0, 540, 90)]
    assert len(rows._files) == 2


def test_several_threads_may_fetch(many: Artifact, reads: list[int]) -> None:
    rows, alone = ShardRows(many, "train", threads=3), ShardRows(many, "train")
    batches = epoch_batches(rows.group_sizes, 0, 0, 32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(rows.fetch, batches))
    assert len(reads) <= len(rows.group_sizes)
    for batch, numbers in zip(found, batches, strict=True):
        expected = alone.fetch(numbers)
        assert batch.ids == expected.ids
        np.testing.assert_array_equal(batch.inputs, expected.inputs)


def test_memory_is_bounded_for_rows_in_any_order(
    many: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "KEPT", 7)
    rows = ShardRows(many, "train")
    for start in range(0, 60, 6):
        rows.fetch(np.arange(start, 550, 60))
        assert len(rows._open) <= 7
    assert rows.fetch(np.arange(5)).ids == [f"train/{number}" for number in range(5)]


def features_of(
    folder: Path, shards: Artifact, splits: tuple[str, ...], views: tuple[str, ...] = ("plain",)
) -> Artifact:
    """Feature k of a row is its number + k, and 100 more in every further view."""
    draft = Draft.open(str(folder), "features", FeaturesConfig(), {})
    for split in splits:
        for name in shards.names(f"{split}/"):
            ids = shards.read_table(name)["id"]
            numbers = np.array([float(i.split("/")[1]) for i in ids.to_pylist()], np.float16)
            plain = numbers[:, None] + np.arange(6)
            values = np.concatenate([plain + 100 * number for number in range(len(views))])
            table = {
                "id": pa.array(ids.to_pylist() * len(views), pa.string()),
                "view": np.repeat(np.array(views), len(ids)),
                "feature": vector_column(values, np.float16),
            }
            draft.write_table(name, pa.table(table))
    return draft.publish()


def test_features_come_with_the_targets_of_the_shards(tmp_path: Path, shards: Artifact) -> None:
    rows = FeatureRows(features_of(tmp_path, shards, ("train", "val")), shards, "train")
    assert (len(rows), rows.group_sizes.tolist()) == (18, [18])
    ids, _, targets = expected(shards, "train")
    batch = rows.fetch(np.array([16, 2, 2]))
    assert batch.ids == [ids[16], ids[2], ids[2]]
    assert batch.inputs.dtype == np.float16
    np.testing.assert_array_equal(batch.inputs, [[n + k for k in range(6)] for n in (16, 2, 2)])
    np.testing.assert_array_equal(batch.targets, targets[[16, 2, 2]].astype(np.float32))


def test_every_view_is_for_training_and_the_plain_one_for_scoring(
    tmp_path: Path, shards: Artifact
) -> None:
    features = features_of(tmp_path, shards, ("train", "val"), ("plain", "flip"))
    rows, (ids, _, targets) = FeatureRows(features, shards, "train"), expected(shards, "train")
    assert sorted(rows.ids) == sorted(ids * 2)
    for row_id, feature, target in zip(rows.ids, rows.features, rows.targets, strict=True):
        number = ids.index(row_id)
        assert feature[0] % 100 == number
        np.testing.assert_array_equal(target, targets[number].astype(np.float32))
    assert (rows.features[:, 0] >= 100).sum() == len(ids)
    held_out = FeatureRows(features, shards, "val")
    assert held_out.ids == expected(shards, "val")[0]
    assert (held_out.features[:, 0] < 100).all()


def test_features_of_other_shards_are_an_assertion(tmp_path: Path, shards: Artifact) -> None:
    features = features_of(tmp_path / "features", shards, ("train",))
    other = write(str(tmp_path / "other"), {"train": [18]}, rows_per_group=4)
    assert len(FeatureRows(features, other, "train")) == 18
    with pytest.raises(AssertionError, match="of these shards"):
        FeatureRows(features, write(str(tmp_path / "less"), {"train": [17]}, 4), "train")


def test_another_size_is_refused(shards: Artifact) -> None:
    check_size(shards, SIDE)
    with pytest.raises(UserError) as caught:
        check_size(shards, 224)
    for part in (shards.uri, "16 pixels", "224", "--shard.size"):
        assert part in str(caught.value)
