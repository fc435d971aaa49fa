"""Training shards: their schema, and random access to their rows.

Parquet with small row groups: any row group can be fetched alone, by byte range from an object
store too, and pyarrow, Ray Data, DuckDB, pandas and Hugging Face datasets all read it.
`tests/benchmarks/shard_formats.py` compares it with tar and Arrow files.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from img2prompt.artifact import Artifact
from img2prompt.data import images
from img2prompt.data.order import LANES
from img2prompt.data.vectors import VECTOR, matrix
from img2prompt.errors import UserError
from img2prompt.storage import open_uri

SPLITS = ("train", "val", "test")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("image", pa.binary()),
        ("target", VECTOR),
    ]
)


def check_size(shards: Artifact, size: int) -> None:
    """Raise UserError for shards of another resolution than the tower's."""
    if shards.config["size"] != size:
        raise UserError(
            f"{shards.uri} has pictures of {shards.config['size']} pixels, the tower reads {size}: "
            "prepare with --shard.size, or set --tower.image-size and --tower.resize-positions"
        )


def read_rows(uri: str, start: int, stop: int, columns: list[str]) -> pa.Table:
    """Read rows `start` to before `stop` of a Parquet file; other row groups are not read."""
    fs, path = open_uri(uri)
    with pq.ParquetFile(fs.open_input_file(path)) as file:
        groups = range(file.num_row_groups)
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in groups])
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        table = file.read_row_groups(range(first, last + 1), columns=columns)
    return table.slice(start - (ends[first - 1] if first else 0), stop - start)


def spaced_rows(sizes: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Return evenly spaced rows, as the number of a file and the row in it.

    Neighbouring rows are alike, because shards keep the order of archives.

    Args:
        sizes: rows of each file; one row or more in all.
        count: rows that are returned, or all if there are fewer.
    """
    ends = np.cumsum(sizes)
    rows = np.unique(np.linspace(0, ends[-1] - 1, count).astype(int))
    numbers = np.searchsorted(ends, rows, side="right")
    starts = ends - np.array(sizes)
    return list(zip(numbers.tolist(), (rows - starts[numbers]).tolist(), strict=True))


def _group_sizes(shards: Artifact, name: str) -> list[int]:
    """Return the rows of each row group of a file without opening it: all are full but the last."""
    rows, full = shards.files[name].rows, shards.config["rows_per_group"]
    return [min(full, rows - start) for start in range(0, rows, full)]


@dataclass(frozen=True)
class Batch:
    """Rows ready for a model."""

    ids: list[str]
    inputs: np.ndarray | Tensor
    """Pixels uint8 (B, S, S, 3), or features float16 (B, D)."""
    targets: np.ndarray | Tensor
    """float32 (B, 384)."""
    prompt_ids: list[str]
    """The prompt of each row: pictures of one prompt share it."""


READERS = 4
"""Row groups that are read at once, since reading waits for a disk or a network."""

KEPT = 4 * LANES
"""Largest number of row groups in memory. An epoch in `order.py`'s order has fewer open."""


OPEN_FILES = 256
"""Largest number of open files: 14M pictures have 28,000, more than a process may open."""


class ShardRows:
    """Random access to the rows of one split; row numbers run through its files in name order.

    Row groups stay in memory, still encoded, until each of their rows was fetched once, so that an
    epoch in `order.py`'s order reads each about once. Decoders and pyarrow release the GIL; batches
    may be fetched from several threads.
    """

    def __init__(self, shards: Artifact, split: str, threads: int = 1) -> None:
        """`threads`: number of pictures that are decoded at once."""
        self._groups = [
            (shards.path(name), number, size)
            for name in shards.names(f"{split}/")
            for number, size in enumerate(_group_sizes(shards, name))
        ]
        self.group_sizes = np.array([size for *_, size in self._groups], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.group_sizes)])
        self._files: OrderedDict[str, tuple[pq.ParquetFile, Lock]] = OrderedDict()
        self._open: OrderedDict[int, Future[pa.Table]] = OrderedDict()
        self._left: dict[int, int] = {}
        self._lock = Lock()
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._decoders = ThreadPoolExecutor(threads, "decode")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def fetch(self, rows: np.ndarray) -> Batch:
        """Return the rows with these numbers, in this order."""
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        open_groups = self._take(groups.tolist())
        tables = [
            open_groups[group].result().slice(int(row - self._starts[group]), 1)
            for row, group in zip(rows, groups, strict=True)
        ]
        table = pa.concat_tables(tables)
        pixels = list(self._decoders.map(images.decode, table["image"].to_pylist()))
        ids, prompt_ids = table["id"].to_pylist(), table["prompt_id"].to_pylist()
        return Batch(ids, np.stack(pixels), matrix(table["target"]).copy(), prompt_ids)

    def _take(self, groups: list[int]) -> dict[int, Future[pa.Table]]:
        """Return these groups, read or being read; each number counts as one row fetched."""
        taken = {}
        with self._lock:
            for number in groups:
                if number not in self._open:
                    self._open[number] = self._readers.submit(self._read, number)
                    self._left[number] = int(self.group_sizes[number])
                taken[number] = self._open[number]
                self._open.move_to_end(number)
                self._left[number] -= 1
                if self._left[number] == 0:
                    self._forget(number)
            while len(self._open) > KEPT:
                self._forget(next(iter(self._open)))
        return taken

    def _forget(self, number: int) -> None:
        del self._open[number], self._left[number]

    def _read(self, number: int) -> pa.Table:
        uri, group, _ = self._groups[number]
        file, lock = self._file(uri)
        with lock:  # pyarrow does not promise that a file may be read from several threads
            return file.read_row_group(group, columns=["id", "prompt_id", "image", "target"])

    def _file(self, uri: str) -> tuple[pq.ParquetFile, Lock]:
        """Return a file, opened unless it is among the last ones."""
        with self._lock:
            if uri in self._files:
                self._files.move_to_end(uri)
                return self._files[uri]
        fs, path = open_uri(uri)
        opened = pq.ParquetFile(fs.open_input_file(path)), Lock()
        with self._lock:
            self._files[uri] = opened
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)  # closed when its last reader is done
        return opened


@dataclass(frozen=True)
class FeatureFile:
    """Rows of one file of cached features: all rows of its shard, once for each view."""

    features: np.ndarray
    """float16 (B, D), finite."""
    targets: np.ndarray
    """float32 (B, 384)."""
    prompt_ids: list[str]
    plain: np.ndarray
    """bool (B,): True for rows of the view "plain"."""


def read_feature_file(features: Artifact, shards: Artifact, name: str) -> FeatureFile:
    """Read the features of one shard, with its targets.

    Raises:
        UserError: a feature is not finite; names its row.
    """
    table = features.read_table(name)
    answers = shards.read_table(name, columns=["id", "prompt_id", "target"])
    row_of_id = {row_id: row for row, row_id in enumerate(answers["id"].to_pylist())}
    ids, values = table["id"].to_pylist(), matrix(table["feature"])
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise UserError(
            f"{features.path(name)} has a non-finite feature in row {bad[0]}, picture "
            f"{ids[bad[0]]!r}: make the features again with --precision fp32"
        )
    answers = answers.take(pa.array([row_of_id[row_id] for row_id in ids]))
    plain = np.array([view == "plain" for view in table["view"].to_pylist()])
    return FeatureFile(values, matrix(answers["target"]), answers["prompt_id"].to_pylist(), plain)


class FeatureRows:
    """Rows of one split with cached features instead of pixels, all in memory (2 KB at D=1024).

    With several views, each training row comes once for each of them. Other splits have the plain
    view alone: a run is validated on pictures as they are.
    """

    def __init__(self, features: Artifact, shards: Artifact, split: str) -> None:
        table = features.read_tables(f"{split}/")
        if split != "train":
            table = table.filter(pc.field("view") == "plain")
        answers = shards.read_tables(f"{split}/", columns=["id", "prompt_id", "target"])
        row_of_id = {row_id: row for row, row_id in enumerate(answers["id"].to_pylist())}
        self.ids = table["id"].to_pylist()
        assert set(self.ids) == row_of_id.keys(), "features are of these shards"
        self.features = matrix(table["feature"])
        order = [row_of_id[row_id] for row_id in self.ids]
        self.targets = matrix(answers["target"])[order]
        self._prompt_ids = answers["prompt_id"].take(pa.array(order)).combine_chunks()
        self.group_sizes = np.array([len(self.ids)], np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, rows: np.ndarray) -> Batch:
        prompt_ids = self._prompt_ids.take(pa.array(rows)).to_pylist()
        return Batch(
            [self.ids[row] for row in rows], self.features[rows], self.targets[rows], prompt_ids
        )
