"""Files that a source does not read, counted by ending: each becomes part of a rejected row."""

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from img2prompt.data.sources.listing import is_system_file
from img2prompt.data.sources.rows import Rejected

SYSTEM = "system files"
OTHER = "other endings"
FOLDERS = "folders"

_LONGEST_ENDING = 10  # characters; a longer "ending" is part of a name with a dot
_MOST_ENDINGS = 30


class LeftOut:
    """Counts the files of a source, or of one archive, that are not read.

    Args:
        base: beginning of the ids of the rejected rows.
        reads: the files that are read, for the reasons.
    """

    def __init__(self, base: str, reads: str) -> None:
        self._base, self._reads = base, reads
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._refused: list[Rejected] = []

    def add(self, name: str, ending: str = "") -> None:
        """Count a file by its ending, or by the given one."""
        ending = ending or self._ending(name)
        self._counts[ending] += 1
        self._examples.setdefault(ending, name)

    def refuse(self, name: str, reason: str) -> None:
        """Add a file or folder that has a reason of its own."""
        self._refused.append(Rejected(f"{self._base}/{name}".strip("/"), reason))

    def forget(self, endings: Iterable[str]) -> None:
        """Drop the counts of these endings, whose files are read after all."""
        for ending in endings:
            self._counts.pop(ending, None)

    def rows(self) -> list[Rejected]:
        """Return a rejected row for each refused file and each ending."""
        by_ending = [self._row(ending, count) for ending, count in self._counts.most_common()]
        return [*self._refused, *by_ending]

    def _ending(self, name: str) -> str:
        if is_system_file(name):
            return SYSTEM
        ending = posixpath.splitext(name)[1].lower() or "files without ending"
        known = ending in self._counts or len(self._counts) < _MOST_ENDINGS
        short = len(ending) <= _LONGEST_ENDING or "." not in ending
        return ending if known and short else OTHER

    def _row(self, ending: str, count: int) -> Rejected:
        noun = "folder" if ending == FOLDERS else "file"
        files = f"{count} {noun}" if count == 1 else f"{count} {noun}s"
        reason = f"left out {ending}: {files}, such as {self._examples[ending]}"
        row_id = f"{self._base}/*{ending}".lstrip("/")
        return Rejected(row_id, f"{reason}; read: {self._reads}", count)


def with_left_out(portions: Iterable[list[Any]], left_out: LeftOut) -> Iterator[list[Any]]:
    """Yield the portions, then the rows of what was left out while they were made."""
    yield from portions
    if rows := left_out.rows():
        yield rows
