"""DiffusionDB 2M and Large: parts of 1,000 pictures, as folders or zips, each with its JSON.

With `metadata.parquet` (`metadata-large.parquet`) its rows are the index: it contains sizes and
NSFW scores, and no picture is opened. Without it the parts' own JSON gives prompt, seed, steps, cfg
and sampler. The layout, the sampler numbers and the meaning of the scores are documented in the
README of github.com/poloclub/diffusiondb.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain
from typing import Any

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources import files, listing
from img2prompt.data.sources.base import Format, Layout
from img2prompt.data.sources.containers import DAMAGES, Parquet
from img2prompt.data.sources.diffusiondb_parts import (
    PART,
    Contents,
    Part,
    find_parts,
    part_name,
    read_contents,
    read_contents_and_names,
    read_json,
)
from img2prompt.data.sources.left_out import LeftOut, with_left_out
from img2prompt.data.sources.metadata.base import whole
from img2prompt.data.sources.portions import PORTION, in_portions
from img2prompt.data.sources.prefetch import in_order, with_sizes
from img2prompt.data.sources.rows import Rejected, Row, new_row, sized

logger = logging.getLogger(__name__)

TABLES = ("metadata.parquet", "metadata-large.parquet")
LARGE = "diffusiondb-large-part-"
SAMPLERS = {
    1: "ddim",
    2: "plms",
    3: "k_euler",
    4: "k_euler_ancestral",
    5: "k_heun",
    6: "k_dpm_2",
    7: "k_dpm_2_ancestral",
    8: "k_lms",
    9: "others",
}
_NEEDED = ("image_name", "prompt", "part_id")
_COLUMNS = (
    *_NEEDED,
    *("seed", "step", "cfg", "sampler", "width", "height", "image_nsfw", "prompt_nsfw"),
)
_JSON_KEYS = {"seed": "se", "steps": "st", "cfg": "c", "sampler": "sa"}
_ROWS_AT_ONCE = 8192
_PARTS_AT_ONCE = 16


def portions(source: PictureSource) -> Iterator[list[Any]]:
    """Yield rows of the metadata table, or parts without a table, of one or both subsets."""
    parts, others = find_parts(source.path)
    left_out = LeftOut(source.name, "parts and their tables")
    for name in others:
        if name not in TABLES:
            left_out.add(name)
    for table, subset in _subsets(source.path, parts):
        if table:
            yield from in_portions(_Table(table, subset, source).rows(), PORTION)
        else:
            yield from in_portions(subset, _PARTS_AT_ONCE)
    yield from with_left_out([], left_out)


def list_rows(
    source: PictureSource, items: Iterable[Row | Rejected | Part]
) -> Iterator[Row | Rejected]:
    """Yield index rows of rows without sizes, or of parts."""
    rows = (_part_rows(item, source) if isinstance(item, Part) else (item,) for item in items)
    return with_sizes(chain.from_iterable(rows))


def _fits(layout: Layout) -> bool:
    names = (name.rstrip("/").rpartition("/")[2] for name in layout.names)
    return any(PART.fullmatch(name.removesuffix(".json")) for name in names)


FORMAT = Format(
    "diffusiondb",
    "part-000001.zip or part-000001/ with its part-000001.json",
    _fits,
    portions,
    list_rows,
    overrides=("sidecar", "metadata"),
)


def _subsets(path: str, parts: list[Part]) -> list[tuple[str, list[Part]]]:
    """Return the table (or none) and the parts of each subset; their part numbers collide."""
    large = [part for part in parts if part.folder.startswith(LARGE)]
    small = [part for part in parts if not part.folder.startswith(LARGE)]
    tables = set(listing.names(path)) & set(TABLES)
    if TABLES[1] in tables and not large and TABLES[0] not in tables:
        small, large = [], small  # Large without its two folders
    subsets = zip(TABLES, (small, large), strict=True)
    return [
        (files.inside(path, table) if table in tables else "", subset)
        for table, subset in subsets
        if subset or table in tables
    ]


class _Table:
    """A metadata table, read in pieces, and the parts that hold its pictures."""

    def __init__(self, uri: str, parts: list[Part], source: PictureSource) -> None:
        self.uri, self.source = uri, source
        self.parts: dict[int, Part] = {}
        for part in parts:
            self.parts.setdefault(part.number, part)
        self.further = [part for part in parts if self.parts[part.number] is not part]
        self.listed: Counter[int] = Counter()

    def rows(self) -> Iterator[Row | Rejected]:
        """Yield a row for each row of the table, then rejected rows for parts it does not list."""
        contents = dict(zip(self.parts, in_order(read_contents, self.parts.values()), strict=True))
        base = f"{self.source.name}/{self.uri.rpartition('/')[2]}"
        try:
            with closing(Parquet(self.uri)) as opened:
                names = opened.table.schema_arrow.names
                if not set(_NEEDED) <= set(names):
                    yield Rejected(base, f"no prompt: {self.uri} has {names}; needed: {_NEEDED}")
                    return
                columns = [name for name in _COLUMNS if name in names]
                for batch in opened.table.iter_batches(_ROWS_AT_ONCE, columns=columns):
                    for cells in batch.to_pylist():
                        yield self._row(cells, contents)
        except (OSError, *DAMAGES, ValueError) as error:
            yield Rejected(
                base,
                f"damaged Parquet: {self.uri}: {error}; its remaining rows are lost. Download it "
                "again, or move it away to read the parts' JSON (without NSFW scores)",
            )
        yield from self._unlisted(contents)

    def _row(self, cells: Mapping[str, Any], contents: Mapping[int, Contents]) -> Row | Rejected:
        number, name = whole(cells["part_id"]), str(cells["image_name"])
        row_id = f"{self.source.name}/{name}"
        if number is None:
            return Rejected(row_id, f"missing part: part_id is {cells['part_id']!r}, not a number")
        self.listed[number] += 1
        part = self.parts.get(number)
        if part is None:
            return Rejected(
                row_id,
                f"missing part: {part_name(number)} is not in {self.source.path}, neither as zip "
                "nor as folder; download it",
            )
        if reason := contents[number].reason(name):
            return Rejected(row_id, reason)
        uri, member = part.location(contents[number].prefix, name)
        settings = {**cells, "sampler": _sampler(cells.get("sampler"))}
        row = new_row(row_id, self.source.name, cells["prompt"], uri, member, settings=settings)
        size = tuple(whole(cells.get(key)) or 0 for key in ("width", "height"))
        return sized(row, *size) if isinstance(row, dict) and all(size) else row

    def _unlisted(self, contents: Mapping[int, Contents]) -> Iterator[Rejected]:
        missing = sum(number not in self.parts for number in self.listed)
        if missing:
            logger.warning(
                "%s: %d of its %d parts are missing", self.uri, missing, len(self.listed)
            )
        for number, part in self.parts.items():
            yield from _left_out(contents[number], self.source)
            more = len(contents[number].pictures) - self.listed[number]
            if more > 0:
                reason = f"no prompt: {part.uri} contains {more} pictures more than {self.uri}"
                yield Rejected(f"{self.source.name}/{part_name(number)}", f"{reason} lists")
        for part in self.further:
            reason = f"repeated part: {self.parts[part.number].uri} was read, {part.uri} was not"
            yield Rejected(f"{self.source.name}/{part_name(part.number)}", reason)


def _sampler(value: Any) -> Any:
    return SAMPLERS.get(value, "") if isinstance(value, int) else value


def _part_rows(part: Part, source: PictureSource) -> Iterator[Row | Rejected]:
    """Yield the rows of a part from its own JSON, without sizes."""
    base = f"{source.name}/{part_name(part.number)}"
    contents, names = read_contents_and_names(part)
    if contents.loss:
        yield Rejected(base, contents.loss)
        return
    try:
        prompts = read_json(part, contents)
    except (OSError, ValueError) as error:
        lasts = isinstance(error, (FileNotFoundError, ValueError))
        kind = "no prompt" if lasts else "unreadable prompt"
        yield Rejected(base, f"{kind}: {part.uri}: {error}")
        return
    for name, settings in prompts.items():
        row_id = f"{source.name}/{name}"
        uri, member = part.location(contents.prefix, name)
        if reason := contents.reason(name):
            yield Rejected(row_id, reason)
        elif not isinstance(settings, dict):
            yield Rejected(row_id, f"no prompt: {part.json} has {str(settings)[:40]!r} for it")
        else:
            prompt = settings.get("p")
            settings = {key: settings.get(short) for key, short in _JSON_KEYS.items()}
            yield new_row(row_id, source.name, prompt, uri, member, settings=settings)
    for name in sorted(set(names) - prompts.keys()):
        yield Rejected(f"{source.name}/{name}", f"no prompt: {part.json} does not list it")
    yield from _left_out(contents, source)


def _left_out(contents: Contents, source: PictureSource) -> list[Rejected]:
    part = contents.part
    left_out = LeftOut(f"{source.name}/{part_name(part.number)}", f"pictures and {part.json}")
    for name in contents.others:
        left_out.add(name)
    return left_out.rows()
