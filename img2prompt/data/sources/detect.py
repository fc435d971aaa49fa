"""Detect the format of a source from the names of its files; ambiguous names are an error."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from img2prompt.config.sources import AUTO, PictureSource
from img2prompt.data.sources import files, formats, listing
from img2prompt.data.sources.base import Format, Layout
from img2prompt.data.sources.rows import printable, undecodable
from img2prompt.errors import UserError

logger = logging.getLogger(__name__)

GLANCE = 5000
"""Number of names that are examined in a folder."""
ALIKE = 500
"""Of which at most so many have one ending in one folder: a table may come after many pictures."""
_MOST_SEEN = 200_000


def resolve(source: PictureSource) -> PictureSource:
    """Return the source with an absolute path and the name of its format.

    Raises:
        UserError: the path does not exist, no format of this name exists, or with `auto` the files
            fit no format, or several.
    """
    if undecodable("path", source.path):
        raise UserError(
            f"path of source {source.name!r} is {printable(source.path)!r}, which is not UTF-8: "
            "rename it, or give the path of a link to it"
        )
    source = replace(source, path=files.absolute(source.path))
    if source.format != AUTO:
        formats.format_of(source)
    try:
        is_file = listing.is_file(source.path)
        if source.format != AUTO:
            return source
        names = [source.path.rpartition("/")[2]]
        if not is_file:
            names = _glance(source.path)
    except FileNotFoundError:
        raise UserError(
            f"{source.path} does not exist: give the file or folder of source {source.name!r}"
        ) from None
    except OSError as error:
        raise UserError(f"{source.path} cannot be read: {error}") from error
    detected = detect(source.path, names)
    logger.info(
        "source %s: %s is read as %s (%s)",
        *(source.name, source.path, detected.name, detected.needs),
    )
    return replace(source, format=detected.name)


def _glance(path: str) -> list[str]:
    names: list[str] = []
    alike: Counter[tuple[str, str]] = Counter()
    for entry in islice(listing.walk(path), _MOST_SEEN):
        folder, _, own = entry.name.rstrip("/").rpartition("/")
        kind = (folder, "/" if entry.name.endswith("/") else own.rpartition(".")[2])
        alike[kind] += 1
        if alike[kind] <= ALIKE and not listing.is_system_file(entry.name):
            names.append(entry.name)
        if len(names) == GLANCE:
            break
    return names


def detect(path: str, names: Iterable[str]) -> Format[PictureSource]:
    """Return the one format that fits the names in a folder (relative; folders end with `/`).

    Raises:
        UserError: no format fits, or several; the message says what the folder contains and how to
            name the format.
    """
    layout = Layout(list(names))
    fitting = [known for known in formats.FORMATS if known.fits(layout)]
    overridden = {name for known in fitting for name in known.overrides}
    fitting = [known for known in fitting if known.name not in overridden]
    if len(fitting) == 1:
        return fitting[0]
    could_be = " or ".join(known.name for known in fitting)
    reason = f"could be {could_be}" if fitting else "fits no known format"
    lines = [f"  {known.name}: {known.needs}" for known in fitting or formats.FORMATS]
    raise UserError(
        f"{path} {reason}. It contains {layout.summary()}. Name the format with --sources.N.format "
        "FORMAT (N: the source's position in the list, from 0):\n" + "\n".join(lines)
    )
