"""Pictures to predict: a folder with its sub-folders, or one file."""

import logging
import posixpath
from dataclasses import dataclass

from img2prompt.artifact import fingerprint_of
from img2prompt.data.sources import files, listing
from img2prompt.data.sources.folder import PICTURE_ENDS, is_picture
from img2prompt.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """Pictures by their names: paths relative to the folder."""

    uris: dict[str, str]
    """URI of each picture, sorted by name."""
    fingerprint: str
    """Digest of names and sizes."""


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
        folder, name = posixpath.split(path)
        size = next(e.size for e in listing.walk(folder or ".") if e.name == name)
        return Pictures({name: path}, fingerprint_of([[name, size]]))
    entries = [entry for entry in listing.walk(path) if not entry.name.endswith("/")]
    pictures = sorted((e.name, e.size) for e in entries if is_picture(e.name))
    endings = f"looked for {', '.join(PICTURE_ENDS)}"
    if not pictures:
        raise UserError(f"{path} contains no picture; {endings}")
    logger.info("predict: %d pictures of %d files; %s", len(pictures), len(entries), endings)
    uris = {name: files.inside(path, name) for name, _ in pictures}
    return Pictures(uris, fingerprint_of([list(picture) for picture in pictures]))
