"""Pictures to predict: a folder with its sub-folders, or one file."""

import logging
import posixpath
from dataclasses import dataclass

from img2prompt.artifact import fingerprint_of
from img2prompt.data.sources import files, listing
from img2prompt.data.sources.folder import PICTURE_ENDS, is_picture
from img2prompt.data.sources.left_out import LeftOut
from img2prompt.data.sources.rows import Rejected
from img2prompt.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """Pictures by their names: paths relative to the folder."""

    uris: dict[str, str]
    """URI of each picture, sorted by name."""
    fingerprint: str
    """Digest of names and sizes."""
    rejected: list[Rejected]
    """Pictures that cannot be opened, and other files, counted by ending."""


def list_pictures(path: str) -> Pictures:
    """List the pictures of a folder and its sub-folders, or a single file.

    Raises:
        UserError: the path does not exist, or contains no picture.
    """
    try:
        is_file = listing.is_file(path) if path else None
    except (OSError, ValueError):
        is_file = None
    if is_file is None:
        raise UserError(f"pictures is {path!r}: give a folder or a picture with --pictures")
    if is_file:
        name = files.relative(posixpath.dirname(path), path)
        return Pictures({name: path}, fingerprint_of([[name, listing.file_size(path)]]), [])
    return _list_folder(path)


def _list_folder(folder: str) -> Pictures:
    left_out = LeftOut("", f"pictures ({', '.join(PICTURE_ENDS)})")
    sizes = dict[str, int]()
    for entry in listing.walk(folder):
        is_folder = entry.name.endswith("/")
        if entry.problem and (is_folder or is_picture(entry.name)):
            left_out.refuse(entry.name, entry.problem)
        elif not is_folder and is_picture(entry.name):
            sizes[entry.name] = entry.size
        elif not is_folder:
            left_out.add(entry.name)
    rejected = left_out.rows()
    if not sizes:
        reasons = "".join(f"\n  {row.reason}" for row in rejected[:3])
        endings = ", ".join(PICTURE_ENDS)
        raise UserError(f"{folder} contains no picture; looked for {endings}{reasons}")
    logger.info("predict: %d pictures%s", len(sizes), "".join(f"; {r.reason}" for r in rejected))
    names = sorted(sizes)
    fingerprint = fingerprint_of([[name, sizes[name]] for name in names])
    return Pictures({name: files.inside(folder, name) for name in names}, fingerprint, rejected)
