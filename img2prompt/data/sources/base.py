"""The seam for sources: a `Format` says how pictures and prompts are stored, and lists them.

To add a format, write one module that exports `FORMAT` and name it in `formats.FORMATS`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.data.sources import listing
from img2prompt.data.sources.rows import Rejected, Row

Source = PictureSource | SceneSource

S = TypeVar("S", PictureSource, SceneSource)


@dataclass(frozen=True)
class Layout:
    """The first names in a source's folder, by which its format is detected."""

    names: Sequence[str]
    """Relative to the folder; names of folders end with `/`. For a file, its own name."""

    @property
    def top(self) -> list[str]:
        """Files and folders directly in the source's folder."""
        return [name for name in self.names if "/" not in name.rstrip("/")]

    def ending(self, *ends: str) -> list[str]:
        """Names with one of these ends, in lower case, in any folder."""
        return [name for name in self.names if name.lower().endswith(ends)]

    def top_ending(self, *ends: str) -> list[str]:
        """Names with one of these ends, in lower case, directly in the source's folder."""
        return [name for name in self.top if name.lower().endswith(ends)]

    def stems(self, *ends: str) -> set[str]:
        """Names with one of these ends, without their last suffix."""
        return {name.rpartition(".")[0] for name in self.ending(*ends)}

    def summary(self) -> str:
        """Up to eight names, for messages."""
        shown = ", ".join(self.names[:8])
        return f"{shown} and more" if len(self.names) > 8 else shown or "nothing"


def digest_files(source: PictureSource) -> str:
    """Return 16 hex digits of the names, sizes and times of a source's files."""
    return listing.digest(source.path)


@dataclass(frozen=True)
class Format(Generic[S]):
    """One way in which pictures and their prompts are stored."""

    name: str
    """Value of `--sources.N.format`."""
    needs: str
    """The files that a source of this format contains, for messages."""
    fits: Callable[[Layout], bool]
    """Return whether the names look like this format. It does not consider other formats."""
    portions: Callable[[S], Iterator[list[Any]]]
    """Yield the contents of a source, in order, in lists that can be read independently."""
    list_rows: Callable[[S, Iterable[Any]], Iterator[Row | Rejected]]
    """Yield an index row or a rejected row for each picture of a portion."""
    digest: Callable[[Any], str] = digest_files
    """Return 16 hex digits that change when the source changes."""
    overrides: tuple[str, ...] = ()
    """Names of more general formats, which do not count as detected where this one fits."""
