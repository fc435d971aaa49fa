"""What lies in a folder, on any filesystem."""

import hashlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.fs as pafs

from img2prompt.data.sources.files import steadily
from img2prompt.errors import UserError
from img2prompt.storage import open_uri


@dataclass(frozen=True)
class Entry:
    """What a folder holds."""

    name: str
    """Relative to where the walk began; a folder's ends with `/`."""
    size: int
    changed: int
    """Nanoseconds since 1970; 0 where the filesystem does not say."""


def walk(folder: str) -> Iterator[Entry]:
    """All that lies in a folder and its folders, in order.

    The entries of a folder come before those of its folders, so a glance at the first few shows
    the layout. Memory is that of the largest folder. A name that is no UTF-8 comes with escapes:
    it cannot be opened, and so is not passed over in silence.

    Raises:
        UserError: a folder cannot be listed.
    """
    fs, root = open_uri(folder)
    waiting = [""]
    while waiting:
        here = waiting.pop()
        try:
            entries = sorted(_list(fs, root, here), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"{folder}/{here} cannot be listed ({error}): make it readable, or move it away"
            ) from error
        yield from entries
        waiting += [entry.name for entry in reversed(entries) if entry.name.endswith("/")]


def _list(fs: pafs.FileSystem, root: str, here: str) -> Iterator[Entry]:
    # Only the root must be there: a folder may vanish, or have a name that cannot be opened.
    selector = pafs.FileSelector(posixpath.join(root, here), allow_not_found=bool(here))
    for info in steadily(fs, lambda: fs.get_file_info(selector)):
        try:
            name = info.base_name
        except UnicodeDecodeError as error:
            name = error.object.decode("utf-8", "backslashreplace").rpartition("/")[2]
        end = "" if info.is_file else "/"
        yield Entry(here + name + end, info.size or 0, info.mtime_ns or 0)


def is_file(uri: str) -> bool:
    """Whether there is a file (True) or a folder (False).

    Raises:
        FileNotFoundError: there is neither.
        OSError: the filesystem does not answer.
    """
    fs, path = open_uri(uri)
    info = steadily(fs, lambda: fs.get_file_info(path))
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(f"{uri} does not exist")
    return info.is_file


def names(folder: str) -> list[str]:
    """Names of the files and folders (ending with `/`) in a folder; none when it is not there."""
    fs, root = open_uri(folder)
    if steadily(fs, lambda: fs.get_file_info(root)).type != pafs.FileType.Directory:
        return []
    return sorted(entry.name for entry in _list(fs, root, ""))


def digest(uri: str) -> str:
    """16 hex digits of what lies in a file or folder: names, sizes and times of change."""
    found = hashlib.sha256()
    for entry in _self(uri) if is_file(uri) else walk(uri):
        if not entry.name.endswith("/"):
            found.update(f"{entry.name}\0{entry.size}\0{entry.changed}\n".encode())
    return found.hexdigest()[:16]


def _self(uri: str) -> Iterator[Entry]:
    fs, path = open_uri(uri)
    info = steadily(fs, lambda: fs.get_file_info(path))
    yield Entry("", info.size or 0, info.mtime_ns or 0)
