"""Read pictures by URI and member: containers are opened once, a bad picture stops nothing."""

import io
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import BinaryIO

from img2prompt.data.sources import files, scenes
from img2prompt.data.sources.containers import HEADER_BYTES, Parquet, Tar, Zip

Container = Zip | Tar | Parquet

_OPEN = 8
_CONTAINERS: dict[str, Callable[[str], Container]] = {
    ".zip": Zip,
    ".tar": Tar,
    ".parquet": Parquet,
}


def read_pictures(locations: Iterable[tuple[str, str]]) -> Iterator[bytes | Exception]:
    """Yield the bytes of each picture, given the `uri` and `member` of index rows, in their order.

    A picture that cannot be read yields the OSError (FileNotFoundError when it does not exist) or
    ValueError that says why. Consecutive rows of one archive are the fastest.
    """
    with closing(PictureReader()) as reader:
        for uri, member in locations:
            try:
                yield reader.read(uri, member)
            except (OSError, ValueError) as error:
                yield error


class PictureReader:
    """Reads pictures and keeps the last few containers open. Not thread-safe.

    Raises:
        OSError: the picture does not exist (FileNotFoundError) or cannot be read.
        ValueError: its container is damaged or of an unknown kind.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, Container | Exception] = OrderedDict()

    def read(self, uri: str, member: str) -> bytes:
        """Return the bytes of a picture."""
        if uri.startswith(scenes.SCHEME):
            return scenes.read_scene(uri, member)
        if not member:
            return files.read_bytes(uri)
        return self._container(uri).read(member)

    def open(self, uri: str, member: str) -> BinaryIO:
        """Return a picture as a seekable file, of which little more is read than requested."""
        if uri.startswith(scenes.SCHEME):
            return io.BytesIO(scenes.read_scene(uri, member))
        if not member:
            return io.BufferedReader(files.SteadyFile(uri), HEADER_BYTES)
        return self._container(uri).open(member)

    def close(self) -> None:
        while self._open:
            self._drop()

    def _drop(self) -> None:
        oldest = self._open.popitem(last=False)[1]
        if not isinstance(oldest, Exception):
            oldest.close()

    def _container(self, uri: str) -> Container:
        if uri not in self._open:
            while len(self._open) >= _OPEN:
                self._drop()
            self._open[uri] = _open(uri)
        self._open.move_to_end(uri)
        container = self._open[uri]
        if isinstance(container, Exception):
            raise container.with_traceback(None)
        return container


def _open(uri: str) -> Container | Exception:
    """Return a container or the error that opening it raised, so that it is tried only once."""
    try:
        return _CONTAINERS[uri[uri.rindex(".") :].lower()](uri)
    except (OSError, ValueError) as error:
        return error
