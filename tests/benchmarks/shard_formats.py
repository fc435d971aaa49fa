"""Compare five file formats for shards, each read three ways; shards are Parquet for this reason.

A training epoch reads groups of rows in random order (`img2prompt/data/order.py`), the features
stage reads everything once, and on an object store each read is a request that pays for its bytes.
So the script reads, from each format, every group in random order, all rows in order, and one group
from a file just opened, where it counts bytes and reads. All formats use the same counting file
object and the page cache, so times are those of the format, not of a disk. Ratios are to the first
line; the title says how fast one core decodes these pictures, which every reader does next. All
formats must return the same rows.

Small groups matter most: one large group, or a tar, reads everything for a few rows, and loose
files are a request each. Arrow's file format touches the same bytes as Parquet and costs less to
parse, but compared with decoding a picture either costs little, and more tools read Parquet.

    python tests/benchmarks/shard_formats.py --rows 2048 --sizes 336
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from img2prompt import cli
from img2prompt.config.sources import SceneSource
from img2prompt.data import images
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.vectors import DIMENSIONS, VECTOR, matrix, vector_column

REAL = Path(__file__).parents[3] / "shared" / "data" / "pictures"
ENCODINGS: tuple[Literal["png", "jpeg"], ...] = ("png", "jpeg")
SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary()), ("target", VECTOR)])


@dataclass(frozen=True, kw_only=True)
class Options:
    """Rows, picture sizes and repeats."""

    rows: int = 512
    sizes: tuple[int, ...] = (64, 336)
    """Sides of the square pictures in pixels."""
    group: int = 64
    """Rows that are read together."""
    pictures: Path = REAL
    """Folder of pictures; drawn scenes if it does not exist."""
    repeats: int = 3
    """Repeats of each reading; the fastest counts."""


@dataclass
class Count:
    """Bytes and reads requested from files."""

    bytes: int = 0
    reads: int = 0


class CountingFile(io.FileIO):
    """A file that counts the bytes and reads requested from it."""

    def __init__(self, path: Path, count: Count) -> None:
        super().__init__(path)
        self._count = count

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self._count.bytes += len(data)
        self._count.reads += 1
        return data


Fetch = Callable[[int, int], pa.Table]
"""Return the rows from the first number up to, but not including, the second."""


@dataclass(frozen=True)
class Format:
    """Writer and reader of rows in a file or folder."""

    name: str
    write: Callable[[pa.Table, Path], None]
    open: Callable[[Path, Count], Fetch]


def parquet(name: str, group: int) -> Format:
    """Parquet as the shard stage writes it, with `group` rows in a row group."""

    def write(table: pa.Table, path: Path) -> None:
        pq.write_table(table, path, row_group_size=group, compression="zstd")

    def open_(path: Path, count: Count) -> Fetch:
        file = pq.ParquetFile(CountingFile(path, count))

        def fetch(start: int, stop: int) -> pa.Table:
            first, last = start // group, -(-stop // group)
            table = file.read_row_groups(list(range(first, last)))
            return table.slice(start - first * group, stop - start)

        return fetch

    return Format(name, write, open_)


def arrow(name: str, group: int) -> Format:
    """Arrow's file format (Feather), uncompressed, with `group` rows in a batch."""

    def write(table: pa.Table, path: Path) -> None:
        with pa.ipc.new_file(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=group)

    def open_(path: Path, count: Count) -> Fetch:
        file = pa.ipc.open_file(pa.PythonFile(CountingFile(path, count), "r"))

        def fetch(start: int, stop: int) -> pa.Table:
            first, last = start // group, -(-stop // group)
            table = pa.Table.from_batches([file.get_batch(n) for n in range(first, last)])
            return table.slice(start - first * group, stop - start)

        return fetch

    return Format(name, write, open_)


def tar(name: str) -> Format:
    """A tar with two members a row, as in WebDataset; without an index, so headers are read."""

    def write(table: pa.Table, path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for row_id, image, target in _parts(table):
                for ending, data in (("image", image), ("target", target)):
                    member = tarfile.TarInfo(f"{row_id}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))

    def open_(path: Path, count: Count) -> Fetch:
        file = CountingFile(path, count)

        def members(archive: tarfile.TarFile, start: int, stop: int) -> Iterator[tuple[str, bytes]]:
            for member in islice(archive, 2 * start, 2 * stop):
                part = archive.extractfile(member)
                assert part is not None
                yield member.name, part.read()

        def fetch(start: int, stop: int) -> pa.Table:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                parts = list(members(archive, start, stop))
            names = [name.removesuffix(".image") for name, _ in parts[::2]]
            return _table(names, [d for _, d in parts[::2]], [d for _, d in parts[1::2]])

        return fetch

    return Format(name, write, open_)


def loose(name: str) -> Format:
    """Two files a row in one folder; the names are known."""

    def write(table: pa.Table, path: Path) -> None:
        path.mkdir()
        for row_id, image, target in _parts(table):
            (path / f"{row_id}.image").write_bytes(image)
            (path / f"{row_id}.target").write_bytes(target)

    def open_(path: Path, count: Count) -> Fetch:
        names = sorted(file.stem for file in path.glob("*.image"))

        def read(file: str) -> bytes:
            with CountingFile(path / file, count) as stream:
                return stream.read()

        def fetch(start: int, stop: int) -> pa.Table:
            some = names[start:stop]
            parts = [[read(f"{n}.{ending}") for n in some] for ending in ("image", "target")]
            return _table(some, *parts)

        return fetch

    return Format(name, write, open_)


def _parts(table: pa.Table) -> Iterator[tuple[str, bytes, bytes]]:
    for row, target in zip(table.to_pylist(), matrix(table["target"]), strict=True):
        yield row["id"], row["image"], target.tobytes()


def _table(ids: list[str], pictures: list[bytes], targets: list[bytes]) -> pa.Table:
    vectors = np.frombuffer(b"".join(targets), np.float32).reshape(-1, DIMENSIONS)
    return pa.table([ids, pictures, vector_column(vectors)], schema=SCHEMA)


def formats(options: Options) -> list[Format]:
    return [
        parquet(f"Parquet {options.group}", options.group),
        parquet("Parquet, one group", options.rows),
        arrow(f"Arrow IPC {options.group}", options.group),
        tar("tar"),
        loose("loose files"),
    ]


def base_pictures(options: Options) -> list[np.ndarray]:
    """Return up to 128 real pictures (H, W, 3), or as many drawn ones."""
    if options.pictures.is_dir():
        files = sorted(file for file in options.pictures.rglob("*") if file.is_file())
        chosen = files[:: max(1, len(files) // 128)][:128]
        return [images.decode(file.read_bytes()) for file in chosen]
    size = min(512, max(32, *options.sizes))
    scenes = list_rows(SceneSource(prompts=128, pictures_per_prompt=1, size=size))
    rows = [row for row in scenes if isinstance(row, dict)]
    return [images.decode(next(read_pictures([(row["uri"], row["member"])]))) for row in rows]


def make_rows(
    options: Options, base: list[np.ndarray], size: int, encoding: Literal["png", "jpeg"]
) -> pa.Table:
    """Return rows like those of shards; repeated pictures are shifted, so that all differ."""
    rng = np.random.default_rng(0)
    small = [images.resize(picture, size, "crop") for picture in base]
    pictures = [
        images.encode(np.roll(small[n % len(small)], n // len(small), axis=1), encoding)
        for n in range(options.rows)
    ]
    targets = rng.normal(size=(options.rows, DIMENSIONS))
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    ids = [f"row-{number:06d}" for number in range(options.rows)]
    return pa.table([ids, pictures, vector_column(targets)], schema=SCHEMA)


@dataclass(frozen=True)
class Measured:
    """One format: bytes on disk, rows a second, and the cost of one group from a closed file."""

    name: str
    disk: int
    scan: float
    shuffled: float
    group: Count

    def against(self, first: "Measured") -> list[object]:
        """Return the cells of a table, each number with its ratio to the first format's."""
        return [
            self.name,
            f"{self.disk / 1e6:.1f} MB {self.disk / first.disk:.2f}x",
            f"{self.scan:,.0f}/s {self.scan / first.scan:.2f}x",
            f"{self.shuffled:,.0f}/s {self.shuffled / first.shuffled:.2f}x",
            f"{self.group.bytes / 1e3:,.0f} kB {self.group.bytes / first.group.bytes:.2f}x",
            self.group.reads,
        ]


def measure(kind: Format, table: pa.Table, path: Path, options: Options) -> Measured:
    """Write, check and time one format.

    Raises:
        AssertionError: the format does not return the rows that were written.
    """
    kind.write(table, path)
    files = list(path.rglob("*")) if path.is_dir() else [path]
    starts = list(range(0, options.rows, options.group))
    ends = [min(start + options.group, options.rows) for start in starts]
    order = np.random.default_rng(1).permutation(len(starts))
    fetch, count = kind.open(path, Count()), Count()
    whole = fetch(0, options.rows).combine_chunks()
    assert whole.equals(table.combine_chunks()), f"{kind.name} does not give the same rows back"
    middle = int(order[0])
    one = kind.open(path, count)(starts[middle], ends[middle])
    expected = table.slice(starts[middle], one.num_rows)
    assert one.combine_chunks().equals(expected.combine_chunks()), f"{kind.name}: other rows"

    def shuffled() -> None:
        for number in order:
            fetch(starts[number], ends[number])

    return Measured(
        kind.name,
        sum(file.stat().st_size for file in files),
        options.rows / _fastest(lambda: fetch(0, options.rows), options.repeats),
        options.rows / _fastest(shuffled, options.repeats),
        count,
    )


def decode_rate(table: pa.Table, repeats: int) -> float:
    """Return how many pictures one core decodes a second."""
    some = table["image"][:64].to_pylist()
    return len(some) / _fastest(lambda: [images.decode(data) for data in some], repeats)


def _fastest(work: Callable[[], object], repeats: int) -> float:
    """Return the seconds of the fastest of several runs."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def run(options: Options) -> dict[str, list[Measured]]:
    """Measure all formats on every size and encoding, and print a table of each."""
    base = base_pictures(options)
    tables = {}
    for size in options.sizes:
        for encoding in ENCODINGS:
            table = make_rows(options, base, size, encoding)
            with tempfile.TemporaryDirectory() as folder:
                results = [
                    measure(kind, table, Path(folder) / str(number), options)
                    for number, kind in enumerate(formats(options))
                ]
            tables[f"{size} {encoding}"] = results
            rate = decode_rate(table, options.repeats)
            cli.show(
                f"{options.rows} rows, {encoding} of {size} pixels, decoded at {rate:,.0f}/s",
                ["format", "on disk", "all rows", "shuffled groups", "one group", "reads"],
                [measured.against(results[0]) for measured in results],
            )
    return tables


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
