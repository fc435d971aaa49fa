"""Reading pictures by their places: containers are opened once, one bad picture stops nothing."""

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


def read_pictures(places: Iterable[tuple[str, str]]) -> Iterator[bytes | Exception]:
    """The bytes of each index row's picture, in the order of the places (`uri`, `member`).

    A picture that cannot be read gives the OSError (FileNotFoundError when it is not there) or
    ValueError that says why. Rows of one archive that follow each other cost the least.
    """
    with closing(PictureReader()) as reader:
        for uri, member in places:
            try:
                yield reader.read(uri, member)
            except (OSError, ValueError) as error:
                yield error


class PictureReader:
    """Pictures by their places; the last few containers stay open. For one thread.

    Raises:
        OSError: the picture is gone (FileNotFoundError) or cannot be read.
        ValueError: it lies in a container that is damaged or of an unknown kind.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, Container | Exception] = OrderedDict()

    def read(self, uri: str, member: str) -> bytes:
        """All bytes of a picture."""
        if uri.startswith(scenes.SCHEME):
            return scenes.read_scene(uri, member)
        if not member:
            return files.read_bytes(uri)
        return self._container(uri).read(member)

    def open(self, uri: str, member: str) -> BinaryIO:
        """A picture as a seekable file, of which little more is read than asked for."""
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
        found = self._open[uri]
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found


def _open(uri: str) -> Container | Exception:
    """A container, or why it cannot be opened: so that this is found out once, not for each row."""
    try:
        return _CONTAINERS[uri[uri.rindex(".") :].lower()](uri)
    except (OSError, ValueError) as error:
        return error
