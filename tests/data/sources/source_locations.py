"""Helpers for tests of sources: locations, pictures, a filesystem that fails."""

import io
from dataclasses import dataclass

import numpy as np
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from PIL import Image

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.sources.rows import Rejected, Row
from img2prompt.storage import join, write_bytes


def encoded(width: int = 5, height: int = 3, form: str = "png", seed: int = 0) -> bytes:
    """Return the bytes of a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG" if form == "jpg" else form.upper())
    return sink.getvalue()


@dataclass(frozen=True)
class SourceLocation:
    """A folder of pictures, filled by a test."""

    root: str

    def write(self, name: str, data: bytes) -> str:
        """Write a file and return its URI."""
        write_bytes(join(self.root, name), data)
        return join(self.root, name)

    def list(self, path: str = "", **options: str) -> tuple[list[Row], list[Rejected]]:
        """Return rows and rejected rows of the source."""
        source = PictureSource(path=join(self.root, path) if path else self.root, **options)
        rows = list(list_rows(source))
        return (
            [row for row in rows if isinstance(row, dict)],
            [row for row in rows if isinstance(row, Rejected)],
        )


def read_all(rows: list[Row]) -> list[bytes | Exception]:
    """Read the pictures of index rows."""
    return list(read_pictures((row["uri"], row["member"]) for row in rows))


class FlakyFile(MemoryFile):
    def read(self, *arguments):
        FlakyFiles.fail_sometimes()
        return super().read(*arguments)


class FlakyFiles(MemoryFileSystem):
    """A filesystem whose next reads and openings fail with the errors in `errors`."""

    protocol = "flaky"
    store = {}  # noqa: RUF012  # fsspec's own way
    pseudo_dirs = [""]  # noqa: RUF012
    errors: list[Exception] = []  # noqa: RUF012

    @classmethod
    def fail_sometimes(cls) -> None:
        if cls.errors:
            raise cls.errors.pop()

    def _open(self, path, mode="rb", **options):
        if mode == "rb":
            self.fail_sometimes()
        return super()._open(path, mode, **options)
