"""Which format lies there: found by looking at names, never by guessing between two."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import cast

from img2prompt.config.sources import Format, PictureSource
from img2prompt.data.sources import files, listing
from img2prompt.data.sources.diffusiondb import TABLES
from img2prompt.data.sources.folder import PICTURE_ENDS, TEXT_END
from img2prompt.data.sources.parts import PART
from img2prompt.data.sources.tables import (
    CSV_ENDS,
    JSON_ENDS,
    KAGGLE_COLUMN,
    KAGGLE_PICTURES,
    KAGGLE_TABLE,
)
from img2prompt.errors import UserError

logger = logging.getLogger(__name__)

GLANCE = 5000
"""Names that are looked at in a folder."""

NEEDS: dict[str, str] = {
    "csv": "a .csv with the columns file and prompt (or others, named by option), and the pictures",
    "jsonl": "a .jsonl (one JSON object a line) with the keys file_name and prompt",
    "kaggle": f"{KAGGLE_TABLE} with the columns {KAGGLE_COLUMN} and prompt, and {KAGGLE_PICTURES}/",
    "sidecar": "a.txt beside a.png",
    "metadata": "pictures that carry their prompt themselves (AUTOMATIC1111, ComfyUI and others)",
    "webdataset": ".tar files with a.jpg and a.txt or a.json",
    "parquet": ".parquet files with a column of pictures and one of prompts",
    "diffusiondb": "part-000001.zip or part-000001/ with its part-000001.json",
}


def resolve(source: PictureSource) -> PictureSource:
    """The source with an absolute path and its format named.

    Raises:
        UserError: the path does not exist, or what lies there fits no format, or several.
    """
    source = replace(source, path=files.absolute(source.path))
    try:
        alone = listing.is_file(source.path)
        if source.format != "auto":
            return source
        name = source.path.rpartition("/")[2]
        seen = [name] if alone else [e.name for e in islice(listing.walk(source.path), GLANCE)]
    except FileNotFoundError:
        raise UserError(
            f"{source.path} does not exist: give the file or folder of source {source.name!r}"
        ) from None
    except OSError as error:
        raise UserError(f"{source.path} cannot be looked at: {error}") from error
    found = detect(source.path, seen)
    logger.info("source %s: %s is read as %s (%s)", source.name, source.path, found, NEEDS[found])
    return replace(source, format=found)


def detect(where: str, seen: Iterable[str]) -> Format:
    """The format of a place from the names in it (relative; folders end with `/`).

    Raises:
        UserError: none or several fit; it says what was seen and how to name the format.
    """
    names = _Names(list(seen))
    fitting = [form for form, fits in _FITS.items() if fits(names)]
    if len(fitting) == 1:
        return cast(Format, fitting[0])
    what = f"could be {' or '.join(fitting)}" if fitting else "fits no known format"
    lines = [f"  {form}: {needs}" for form, needs in NEEDS.items() if form in (fitting or NEEDS)]
    raise UserError(
        f"{where} {what}. It holds {names.summary()}. Name the format with --sources.N.format "
        "FORMAT (N: the source's place in the list, from 0):\n" + "\n".join(lines)
    )


@dataclass(frozen=True)
class _Names:
    names: list[str]

    @property
    def top(self) -> list[str]:
        """Files and folders that lie in the place itself."""
        return [name for name in self.names if "/" not in name.rstrip("/")]

    @property
    def folders(self) -> set[str]:
        return {name for name in self.top if name.endswith("/")}

    def ending(self, *ends: str) -> list[str]:
        return [name for name in self.names if name.lower().endswith(ends)]

    def stems(self, *ends: str) -> set[str]:
        return {name.rpartition(".")[0] for name in self.ending(*ends)}

    def tables(self, ends: tuple[str, ...]) -> list[str]:
        """Tables in the place itself."""
        return [name for name in self.top if name.lower().endswith(ends)]

    def summary(self) -> str:
        shown = ", ".join(self.names[:8])
        return f"{shown} and more" if len(self.names) > 8 else shown or "nothing"


def _is_diffusiondb(names: _Names) -> bool:
    files_and_folders = (name.rstrip("/").rpartition("/")[2] for name in names.names)
    return any(PART.fullmatch(name.removesuffix(".json")) for name in files_and_folders)


def _is_kaggle(names: _Names) -> bool:
    return KAGGLE_TABLE in names.top and f"{KAGGLE_PICTURES}/" in names.folders


def _is_webdataset(names: _Names) -> bool:
    return bool(names.ending(".tar"))


def _is_parquet(names: _Names) -> bool:
    # img2dataset writes a table of what it did beside each tar.
    tables = [n for n in names.ending(".parquet") if n.rpartition("/")[2] not in TABLES]
    tars = names.stems(".tar")
    return any(name.rpartition(".")[0] not in tars for name in tables)


def _is_csv(names: _Names) -> bool:
    return bool(names.tables(CSV_ENDS)) and not _is_kaggle(names)


def _is_jsonl(names: _Names) -> bool:
    return bool(names.tables(JSON_ENDS))


def _is_sidecar(names: _Names) -> bool:
    return bool(names.stems(*PICTURE_ENDS) & names.stems(TEXT_END)) and not _is_diffusiondb(names)


def _is_metadata(names: _Names) -> bool:
    others = (_is_diffusiondb, _is_kaggle, _is_csv, _is_jsonl, _is_sidecar)
    return bool(names.ending(*PICTURE_ENDS)) and not any(other(names) for other in others)


_FITS: dict[str, Callable[[_Names], bool]] = {
    "csv": _is_csv,
    "jsonl": _is_jsonl,
    "kaggle": _is_kaggle,
    "sidecar": _is_sidecar,
    "metadata": _is_metadata,
    "webdataset": _is_webdataset,
    "parquet": _is_parquet,
    "diffusiondb": _is_diffusiondb,
}
