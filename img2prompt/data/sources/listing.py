"""Listings and digests of folders on any filesystem."""

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
    """A file or folder in a folder."""

    name: str
    """Relative to the root of the walk; ends with `/` for a folder."""
    size: int
    changed: int
    """Nanoseconds since 1970; 0 where the filesystem does not say."""


def walk(folder: str) -> Iterator[Entry]:
    """Yield the files and folders below a folder, in order.

    The entries of a folder come before those of its folders, so the first few show the layout.
    Memory is that of the largest folder. A name that is not UTF-8 is yielded with escapes: the file
    cannot be opened, so it is reported and not skipped silently.

    Raises:
        UserError: a folder cannot be listed.
    """
    fs, root = open_uri(folder)
    waiting = [""]
    while waiting:
        subfolder = waiting.pop()
        try:
            entries = sorted(_list(fs, root, subfolder), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"{folder}/{subfolder} cannot be listed ({error}): make it readable or move it away"
            ) from error
        yield from entries
        waiting += [entry.name for entry in reversed(entries) if entry.name.endswith("/")]


def _list(fs: pafs.FileSystem, root: str, folder: str) -> Iterator[Entry]:
    # Only the root must exist: a folder may vanish, or have a name that cannot be opened.
    selector = pafs.FileSelector(posixpath.join(root, folder), allow_not_found=bool(folder))
    for info in steadily(fs, lambda: fs.get_file_info(selector)):
        try:
            name = info.base_name
        except UnicodeDecodeError as error:
            name = error.object.decode("utf-8", "backslashreplace").rpartition("/")[2]
        end = "" if info.is_file else "/"
        yield Entry(folder + name + end, info.size or 0, info.mtime_ns or 0)


def is_file(uri: str) -> bool:
    """Return True for a file and False for a folder.

    Raises:
        FileNotFoundError: neither exists.
        OSError: the filesystem does not answer.
    """
    fs, path = open_uri(uri)
    info = steadily(fs, lambda: fs.get_file_info(path))
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(f"{uri} does not exist")
    return info.is_file


def names(folder: str) -> list[str]:
    """Return the names of files and folders (ending with `/`) in a folder; [] if it is missing."""
    fs, root = open_uri(folder)
    if steadily(fs, lambda: fs.get_file_info(root)).type != pafs.FileType.Directory:
        return []
    return sorted(entry.name for entry in _list(fs, root, ""))


def digest(uri: str) -> str:
    """Return 16 hex digits of the names, sizes and times of change of a file or folder."""
    content = hashlib.sha256()
    for entry in _self(uri) if is_file(uri) else walk(uri):
        if not entry.name.endswith("/"):
            content.update(f"{entry.name}\0{entry.size}\0{entry.changed}\n".encode())
    return content.hexdigest()[:16]


def _self(uri: str) -> Iterator[Entry]:
    fs, path = open_uri(uri)
    info = steadily(fs, lambda: fs.get_file_info(path))
    yield Entry("", info.size or 0, info.mtime_ns or 0)
