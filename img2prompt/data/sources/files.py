"""Files of any filesystem: names become URIs, and operations with transient errors are retried.

Folders and files are local paths or URIs. Names in a URI's folder are written with percent escapes,
so that `a b#1.png` in a bucket can be opened like any other file; `fsspec+` URIs have no escapes.
"""

import errno
import hashlib
import io
import logging
import posixpath
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs
import tenacity

from img2prompt.storage import open_uri

logger = logging.getLogger(__name__)

ATTEMPTS = 5
FIRST_WAIT = 0.5
"""Seconds; doubled after each attempt, with jitter, so that workers do not retry at once."""

LARGEST_BYTES = 1 << 30
"""Larger files are refused: they are no pictures and would fill a worker's memory."""

_TRANSIENT = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_PERMANENT = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "Forbidden", "PermissionDenied")

_BLOCK_BYTES = 1 << 20

T = TypeVar("T")


def absolute(uri: str) -> str:
    """Return an absolute path or URI, which is valid in a worker's folder too."""
    return uri.rstrip("/") or "/" if "://" in uri else str(Path(uri).absolute())


def inside(folder: str, name: str) -> str:
    """Return the URI of `name` in a folder; an absolute path or URI is returned unchanged."""
    if "://" in name:
        return name
    return posixpath.join(folder, quote(name) if _escapes(folder) else name)


def relative(folder: str, uri: str) -> str:
    """Return the name of a file in a folder, as `inside` takes it; another URI is unchanged."""
    base = folder.rstrip("/") + "/"
    if not uri.startswith(base):
        return uri
    name = uri.removeprefix(base)
    return unquote(name) if _escapes(folder) else name


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return filesystem and path of a file; all files of a folder share one filesystem."""
    folder, name = posixpath.split(uri)
    if not name or ("://" in uri and "://" not in folder):
        return open_uri(uri)
    fs, path = _folder(folder or ".")
    return fs, posixpath.join(path, unquote(name) if _escapes(folder) else name)


@lru_cache(maxsize=256)
def _folder(uri: str) -> tuple[pafs.FileSystem, str]:
    # Creating a filesystem may query a bucket's region over the network: too slow per picture.
    return open_uri(uri)


def _escapes(uri: str) -> bool:
    return "://" in uri and not uri.startswith("fsspec+")


def steadily(fs: pafs.FileSystem, action: Callable[[], T]) -> T:
    """Return the result of `action`, which is retried after transient errors.

    Raises:
        OSError: it failed `ATTEMPTS` times, or with an error that is not transient.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: _is_transient(fs, error)),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(FIRST_WAIT, max=10),
        before_sleep=tenacity.before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )(action)


def _is_transient(fs: pafs.FileSystem, error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if not isinstance(error, OSError):
        return False
    if error.errno is not None:
        return error.errno in _TRANSIENT
    # Object stores give no errno; a local disk does whenever the device failed.
    local = isinstance(fs, pafs.LocalFileSystem)
    return not local and not any(word in str(error) for word in _PERMANENT)


class SteadyFile(io.RawIOBase):
    """A file opened for ranged reads, which are retried after transient errors.

    Raises:
        OSError: the file cannot be read (FileNotFoundError when it does not exist).
    """

    def __init__(self, uri: str) -> None:
        self._fs, self._path = locate(uri)
        self._file: pa.NativeFile | None = None
        self._at = 0
        self.size: int = self._steadily(lambda file: file.size())

    @property
    def local(self) -> bool:
        """Return whether many small reads are cheap."""
        return isinstance(self._fs, pafs.LocalFileSystem)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, f"position {base + offset} in {self._path}")
        self._at = base + offset
        return self._at

    def read_at(self, size: int, offset: int) -> bytes:
        """Return `size` bytes from `offset`, or fewer at the end of the file, in one request."""
        size = min(size, self.size - offset)
        return self._steadily(lambda file: file.read_at(size, offset)) if size > 0 else b""

    def readinto(self, buffer) -> int:
        data = self.read_at(len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self.read_at(self.size, self._at)
        self._at += len(data)
        return data

    def close(self) -> None:
        self._drop()
        super().close()

    def _steadily(self, action: Callable[[pa.NativeFile], T]) -> T:
        return steadily(self._fs, lambda: self._attempt(action))

    def _attempt(self, action: Callable[[pa.NativeFile], T]) -> T:
        if self._file is None:
            self._file = self._fs.open_input_file(self._path)
        try:
            return action(self._file)
        except OSError:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_bytes(uri: str) -> bytes:
    """Return the content of a file that is at most as large as a picture.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it has more than LARGEST_BYTES.
    """
    with SteadyFile(uri) as file:
        refuse_large(file.size)
        return file.readall()


def content_digest(uri: str) -> str:
    """Return 16 hex digits of the bytes of a file of any size.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    content = hashlib.sha256()
    with SteadyFile(uri) as file:
        while block := file.read(_BLOCK_BYTES):
            content.update(block)
    return content.hexdigest()[:16]


def is_existing(uri: str) -> bool:
    """Return whether a file exists; False also for a name that no file can have."""
    try:
        fs, path = locate(uri)
        return steadily(fs, lambda: fs.get_file_info(path)).is_file
    except (OSError, ValueError):
        return False


def refuse_large(size: int) -> None:
    """Raise ValueError for a file or member of more than LARGEST_BYTES."""
    if size > LARGEST_BYTES:
        raise ValueError(f"{size} bytes; allowed: at most {LARGEST_BYTES}")
