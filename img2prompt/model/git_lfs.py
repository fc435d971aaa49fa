"""Recognise Git LFS pointers: what a clone made without git-lfs has in place of large files.

A pointer is a text file of three lines, by the specification of git-lfs.
"""

from pathlib import Path

from img2prompt.errors import UserError

MARK = b"version https://git-lfs.github.com/spec/"
LONGEST = 1024
"""Bytes of the longest pointer that the specification allows."""


def refuse_pointer_bytes(name: str, data: bytes) -> None:
    """Raise a UserError if the contents of the file `name` are a Git LFS pointer."""
    if data.startswith(MARK):
        raise UserError(
            f"{name} is a Git LFS pointer, not the file itself: run `git lfs pull` in its "
            "repository, or download the file again"
        )


def refuse_pointer(path: Path) -> None:
    """Raise a UserError if a file is a Git LFS pointer; other and absent files pass."""
    if path.is_file() and path.stat().st_size <= LONGEST:
        refuse_pointer_bytes(str(path), path.read_bytes())


def refuse_pointers(folder: Path) -> None:
    """Raise a UserError if a folder, or one below it, has a Git LFS pointer."""
    for path in sorted(folder.rglob("*")):
        refuse_pointer(path)
