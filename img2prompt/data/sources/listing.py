"""Listings and digests of folders on any filesystem."""

import hashlib
import os
import posixpath
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.fs as pafs

from img2prompt.data.sources.files import steadily
from img2prompt.errors import UserError
from img2prompt.storage import open_uri

_SYSTEM_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
NOT_UTF_8 = "unusable name: its bytes are not UTF-8; rename it"


def is_system_file(name: str) -> bool:
    """Return whether macOS or Windows wrote a file beside those of the user.

    On foreign disks and in archives macOS stores attributes of `a.jpg` as `._a.jpg` (AppleDouble)
    or in `__MACOSX/`.
    """
    *folders, own = name.rstrip("/").split("/")
    return own.startswith("._") or own in _SYSTEM_FILES or "__MACOSX" in (*folders, own)


@dataclass(frozen=True)
class Entry:
    """A file or folder in a folder."""

    name: str
    """Relative to the root of the walk; ends with `/` for a folder."""
    size: int
    changed: int
    """Nanoseconds since 1970; 0 where the filesystem does not say."""
    problem: str = ""
    """Why it cannot be read, as `kind: detail`, or empty."""
    is_link: bool = False


def walk(folder: str) -> Iterator[Entry]:
    """Yield the files and folders below a folder, in order.

    The entries of a folder come before those of its folders, so the first few show the layout;
    linked folders come last. Memory is that of the largest folder. A folder that links reach again
    is not listed again: it is yielded once more, with the problem. So are names that are not UTF-8
    (with escapes) and links that lead nowhere.

    Raises:
        UserError: a folder cannot be listed.
    """
    fs, root = open_uri(folder)
    visited = _Visited(fs, root)
    waiting, links = [""], deque[str]()
    while waiting or links:
        subfolder = waiting.pop() if waiting else links.popleft()
        if problem := visited.add(subfolder):
            yield Entry(subfolder, 0, 0, problem)
            continue
        try:
            entries = sorted(_list(fs, root, subfolder), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"{folder}/{subfolder} cannot be listed ({error}): make it readable or move it away"
            ) from error
        yield from entries
        folders = [e for e in entries if e.name.endswith("/") and not e.problem]
        waiting += [entry.name for entry in reversed(folders) if not entry.is_link]
        links += [entry.name for entry in folders if entry.is_link]


class _Visited:
    """Folders by their real paths, so that a link to one above itself does not repeat it."""

    def __init__(self, fs: pafs.FileSystem, root: str) -> None:
        self._local, self._root = isinstance(fs, pafs.LocalFileSystem), root
        self._names: dict[str, str] = {}

    def add(self, folder: str) -> str:
        """Return why a folder must not be listed, or an empty text."""
        if not self._local:
            return ""
        real = os.path.realpath(os.path.join(self._root, folder))
        if real in self._names:
            same = self._names[real] or "the folder of the source"
            return f"repeated folder: its link leads to {same}, which is listed"
        if self._names and os.path.realpath(self._root).startswith(os.path.join(real, "")):
            return f"repeated folder: its link leads to {real}, which contains this source"
        self._names[real] = folder
        return ""


def _list(fs: pafs.FileSystem, root: str, folder: str) -> Iterator[Entry]:
    path = posixpath.join(root, folder)
    if isinstance(fs, pafs.LocalFileSystem):
        return _list_local(fs, path, folder)
    return _list_remote(fs, path, folder)


def _list_remote(fs: pafs.FileSystem, path: str, folder: str) -> Iterator[Entry]:
    # Only the root must exist: a folder may vanish.
    selector = pafs.FileSelector(path, allow_not_found=bool(folder))
    for info in steadily(fs, lambda: fs.get_file_info(selector)):
        end = "" if info.is_file else "/"
        yield Entry(folder + info.base_name + end, info.size or 0, info.mtime_ns or 0)


def _list_local(fs: pafs.FileSystem, path: str, folder: str) -> Iterator[Entry]:
    """Yield the entries of a local folder; pyarrow would leave out broken links."""
    try:
        entries = steadily(fs, lambda: list(os.scandir(path)))
    except FileNotFoundError:
        if not folder:
            raise
        return
    for entry in entries:
        raw = os.fsencode(entry.name)
        name = raw.decode("utf-8", "backslashreplace")
        problem = "" if name == entry.name else NOT_UTF_8
        try:
            status, end = entry.stat(), "/" if entry.is_dir() else ""
        except FileNotFoundError:
            leads_to = os.readlink(entry.path) if entry.is_symlink() else entry.path
            yield Entry(folder + name, 0, 0, f"broken link: {leads_to} does not exist")
            continue
        except OSError as error:
            yield Entry(folder + name, 0, 0, f"broken link: {error.strerror}")
            continue
        size = 0 if end else status.st_size
        changed = status.st_mtime_ns
        yield Entry(folder + name + end, size, changed, problem, entry.is_symlink())


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


def file_size(uri: str) -> int:
    """Return the bytes of a file; 0 where the filesystem does not say."""
    fs, path = open_uri(uri)
    return steadily(fs, lambda: fs.get_file_info(path)).size or 0


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
        if not entry.name.endswith("/") and not entry.problem.startswith("broken link"):
            content.update(f"{entry.name}\0{entry.size}\0{entry.changed}\n".encode())
    return content.hexdigest()[:16]


def _self(uri: str) -> Iterator[Entry]:
    fs, path = open_uri(uri)
    info = steadily(fs, lambda: fs.get_file_info(path))
    yield Entry("", info.size or 0, info.mtime_ns or 0)
