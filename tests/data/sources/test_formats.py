"""The seam for sources: one module with a FORMAT, one entry in the tuple, and nothing else."""

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from source_locations import SourceLocation, encoded, read_all

from img2prompt.config.sources import AUTO, PictureSource
from img2prompt.data.sources import files, formats, listing
from img2prompt.data.sources.base import Format
from img2prompt.data.sources.catalogue import identity, list_portion, portions
from img2prompt.data.sources.detect import detect, resolve
from img2prompt.data.sources.formats import FORMATS
from img2prompt.data.sources.portions import in_portions
from img2prompt.data.sources.prefetch import with_sizes
from img2prompt.data.sources.rows import Rejected, Row, new_row
from img2prompt.errors import UserError


def toy_portions(source: PictureSource) -> Iterator[list[str]]:
    names = listing.names(source.path)
    return in_portions((name for name in names if name.endswith(".toy.png")), 2)


def toy_rows(source: PictureSource, names: Iterable[str]) -> Iterator[Row | Rejected]:
    """The prompt of `a_red_cat.toy.png` is in its name."""
    for name in names:
        prompt = name.removesuffix(".toy.png").replace("_", " ")
        row = new_row(f"{source.name}/{name}", source.name, prompt, files.inside(source.path, name))
        yield from with_sizes([row])


TOY = Format(
    "toy",
    "pictures named a_red_cat.toy.png",
    lambda layout: bool(layout.ending(".toy.png")),
    toy_portions,
    toy_rows,
    overrides=("metadata",),
)


def test_a_new_format_is_one_object_in_the_tuple(
    location: SourceLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [encoded(seed=number) for number in range(3)]
    for name, picture in zip(("a_cat", "a_dog", "a_hen"), pictures, strict=True):
        location.write(f"{name}.toy.png", picture)
    location.write("_.toy.png", b"broken")
    assert resolve(PictureSource(path=location.root)).format == "metadata"
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, TOY))

    rows, rejected = location.list(name="mine")
    assert [row["prompt"] for row in rows] == ["a cat", "a dog", "a hen"]
    assert read_all(rows) == pictures
    assert [(row.id, row.kind) for row in rejected] == [("mine/_.toy.png", "empty prompt")]

    source = resolve(PictureSource(path=location.root))
    assert source.format == "toy"
    assert resolve(PictureSource(path=location.root, format="toy")) == source
    assert [len(list(list_portion(source, part))) for part in portions(source)] == [2, 2]
    before = identity(source)
    location.write("a_cow.toy.png", encoded())
    assert identity(source) != before


def test_messages_list_a_new_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, TOY))
    with pytest.raises(UserError, match=r"\n  toy: pictures named a_red_cat.toy.png"):
        detect("/data", ["notes.bin"])
    with pytest.raises(UserError, match="/data could be csv or toy"):
        detect("/data", ["list.csv", "a.toy.png"])


@pytest.mark.parametrize("name", ["", "CSV", "zip", "scenes"])
def test_an_unknown_format_lists_the_allowed_ones(location: SourceLocation, name: str) -> None:
    source = PictureSource(path=location.root, name="mine", format=name)
    with pytest.raises(UserError, match=f"format of source 'mine' is '{name}'") as error:
        resolve(source)
    assert f"allowed: auto, {', '.join(known.name for known in FORMATS)} " in str(error.value)


def test_the_help_names_every_format() -> None:
    documented = inspect.getsource(PictureSource).partition("format: str")[2].partition("name:")[0]
    names = [known.name for known in FORMATS]
    assert re.findall(r"`(\w+)`", documented) == [AUTO, *names]


def test_names_and_overrides_are_consistent() -> None:
    names = [known.name for known in FORMATS]
    assert len(set(names)) == len(names)
    for known in FORMATS:
        assert known.name not in known.overrides
        assert set(known.overrides) <= set(names)
        assert known.needs


def test_a_format_that_overrides_is_chosen_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.toy.png"]
    general = replace(TOY, overrides=())
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, general))
    with pytest.raises(UserError, match="could be metadata or toy"):
        detect("/data", names)
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, TOY))
    assert detect("/data", names) is TOY
