"""Archives of many pictures: opened in place, read in pieces, never unpacked.

Pictures in a zip are named by their member, in a tar by `offset+size` in bytes, in a Parquet file
by `row group/row in it/column`.
"""

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from img2prompt.data.sources.files import SteadyFile, refuse_large

HEADER_BYTES = 65536
"""Bytes of one read where only a picture's header is needed."""
_BATCH_ROWS = 16
_PAGE_BYTES = 1 << 20

DAMAGES = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    LookupError,
    RuntimeError,  # zip members that need a password, or an unknown compression
    pa.ArrowException,
)
"""Errors that the libraries raise on archives that are damaged or of an unsupported kind."""


@contextmanager
def damage(message: str) -> Iterator[None]:
    """Turn an error of an archive's library into a ValueError that begins with `message`."""
    try:
        yield
    except DAMAGES as error:
        raise ValueError(f"{message}: {error}") from error


class Zip:
    """A zip of pictures."""

    def __init__(self, uri: str) -> None:
        file = io.BufferedReader(SteadyFile(uri), HEADER_BYTES)
        with damage("damaged zip, copy or download it again"):
            self.archive = zipfile.ZipFile(file)

    def open(self, member: str) -> BinaryIO:
        info = self._info(member)
        with damage("unreadable member"):
            return io.BufferedReader(self.archive.open(info), HEADER_BYTES)  # type: ignore[arg-type]

    def read(self, member: str) -> bytes:
        info = self._info(member)
        with damage("unreadable member"):
            return self.archive.read(info)

    def _info(self, member: str) -> zipfile.ZipInfo:
        try:
            info = self.archive.getinfo(member)
        except KeyError:
            raise FileNotFoundError(f"the zip contains no {member}") from None
        refuse_large(info.file_size)
        return info

    def close(self) -> None:
        file = self.archive.fp
        self.archive.close()
        if file is not None:
            file.close()


class Tar:
    """A tar of pictures whose offsets are known: each picture is one ranged read."""

    def __init__(self, uri: str) -> None:
        self._file = SteadyFile(uri)

    def open(self, member: str) -> BinaryIO:
        return io.BufferedReader(Range(self._file, *_range(member)), HEADER_BYTES)

    def read(self, member: str) -> bytes:
        offset, size = _range(member)
        refuse_large(size)
        data = self._file.read_at(size, offset)
        if len(data) < size:
            raise ValueError(f"the tar ends at byte {self._file.size}, within this picture")
        return data

    def close(self) -> None:
        self._file.close()


class Parquet:
    """A Parquet file with a column of pictures. Rows read in order are decoded once."""

    def __init__(self, uri: str) -> None:
        self._file = SteadyFile(uri)
        with damage("damaged Parquet, copy or download it again"):
            # Without a buffer each column of a row group would be read whole.
            self.table = pq.ParquetFile(self._file, buffer_size=_PAGE_BYTES)
        self._at: tuple[int, str, int] = (-1, "", 0)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.Array = pa.array([])

    def open(self, member: str) -> BinaryIO:
        return io.BytesIO(self.read(member))

    def read(self, member: str) -> bytes:
        group, row, column = member.split("/", 2)
        with damage("damaged Parquet"):
            data = picture_bytes(self._cell(int(group), int(row), column))
        if data is None:
            raise FileNotFoundError(f"row {row} of row group {group} contains no picture")
        return data

    def _cell(self, group: int, row: int, column: str) -> pa.Scalar:
        group_now, column_now, start = self._at
        if (group, column) != (group_now, column_now) or row < start:
            self._batches = self.table.iter_batches(_BATCH_ROWS, [group], [column])
            self._batch, start = pa.array([]), 0
        while row >= start + len(self._batch):
            start += len(self._batch)
            batch = next(self._batches, None)
            if batch is None:
                self._at = (-1, "", 0)
                raise FileNotFoundError(f"row group {group} has {start} rows, no row {row}")
            self._batch = batch.column(0)
        self._at = (group, column, start)
        return self._batch[row - start]

    def close(self) -> None:
        self.table.close()
        self._file.close()


def picture_bytes(cell: pa.Scalar) -> bytes | None:
    """Return the picture in a cell that holds bytes or a struct with the field `bytes`."""
    data = cell.as_py()
    data = data.get("bytes") if isinstance(data, dict) else data
    return data if isinstance(data, bytes) else None


class Range(io.RawIOBase):
    """Part of a seekable file, as a file of its own."""

    def __init__(self, file: io.RawIOBase | BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        self._file.seek(self._offset + self._at)
        data = self._file.read(max(0, min(len(buffer), self._size - self._at))) or b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _range(member: str) -> tuple[int, int]:
    offset, size = member.split("+")
    return int(offset), int(size)
