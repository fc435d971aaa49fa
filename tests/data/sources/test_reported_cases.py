"""Archives, tables and folders built after public bug reports, beside the checkout.

What each must give; pictures with metadata are in `test_metadata_cases.py`.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from img2prompt.config.sources import PictureSource
from img2prompt.data.images import decode
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.sources.rows import Rejected, Row, count_kinds
from img2prompt.model.text import count_unknown

PROMPTS = {
    "csv-bom-newline": ["a red fox,\r\nin snow", "a whale"],
    "csv-semicolon-bom": ["a red fox", "a whale"],
    "csv-utf16": ["a red fox", "a whale"],
    "hf-splits": [
        "a red fox in snow (test)",
        "a blue whale (test)",
        "a red fox in snow (train)",
        "a blue whale (train)",
    ],
    "img2dataset-no-reencode": ["a red fox"],
    "list-of-captions": ["a red fox"],
    "mac-tar": ["a red fox in snow", "a blue whale in the sky"],
    "other-picture-ends": ["a fox in snow", "a whale in the sky"],
    "parquet-views": ["a red fox", "a whale"],
    "tar-dots": ["a red fox", "a red fox at dusk"],
    "tar-unsorted": ["a red fox", "a whale"],
    "tar-upper-case": ["a red fox"],
}
REJECTED = {
    "img2dataset-no-reencode": {"empty prompt": 1},
    "mac-tar": {"left out system files": 4},
    "other-picture-ends": {"no prompt": 2},
}
SIDECARS = {
    "cmyk-no-marker": "cmyk.jpg",
    "ycck": "ycck.jpg",
    "gzipped-jpeg": "gz.jpg",
}


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> dict[str, Path]:
    """Input of each case."""
    folder = shared_data.parent / "cases"
    if not (folder / "data.csv").exists():
        pytest.skip(f"needs the reported inputs in {folder}")
    with open(folder / "data.csv", newline="", encoding="utf-8") as file:
        return {row["case"]: folder / "data" / row["input"] for row in csv.DictReader(file)}


def listed(path: Path, **options: str) -> tuple[list[Row], list[Rejected]]:
    rows = list(list_rows(PictureSource(path=str(path), **options)))
    usable = [row for row in rows if isinstance(row, dict)]
    return usable, [row for row in rows if isinstance(row, Rejected)]


@pytest.mark.parametrize("case", PROMPTS)
def test_a_reported_source(case: str, cases: dict[str, Path]) -> None:
    rows, rejected = listed(cases[case])
    assert [row["prompt"] for row in rows] == PROMPTS[case]
    assert count_kinds(rejected) == REJECTED.get(case, {})
    assert len({row["id"] for row in rows}) == len(rows)
    for row, data in zip(rows, read_pictures((r["uri"], r["member"]) for r in rows), strict=True):
        assert isinstance(data, bytes)
        assert decode(data).shape == (row["height"], row["width"], 3)


def test_other_endings_are_decoded(cases: dict[str, Path]) -> None:
    for picture in sorted(cases["other-picture-ends"].iterdir()):
        assert decode(picture.read_bytes()).shape == (40, 48, 3)


@pytest.mark.parametrize("case", SIDECARS)
def test_a_reported_jpeg(case: str, cases: dict[str, Path]) -> None:
    rows, rejected = listed(cases[case].parent)
    if case == "gzipped-jpeg":
        (bad,) = [row for row in rejected if row.id.endswith(SIDECARS[case])]
        assert bad.reason.startswith("unreadable picture: ")
        assert "it starts with 1f 8b" in bad.reason
        return
    (row,) = [row for row in rows if row["id"].endswith(SIDECARS[case])]
    (data,) = read_pictures([(row["uri"], row["member"])])
    assert isinstance(data, bytes)
    assert np.abs(decode(data).mean((0, 1)) - [200, 40, 30]).max() < 2


def test_prompts_in_an_unknown_script(cases: dict[str, Path]) -> None:
    path = cases["unreadable-script"]
    rows, rejected = listed(path if path.is_dir() else path.parent)
    assert not rejected
    unknown, tokens = count_unknown([row["prompt"] for row in rows])
    assert (unknown > tokens / 2).tolist() == [True] * 6 + [False] * 12


def test_a_link_to_itself_and_five_captions(tmp_path: Path, cases: dict[str, Path]) -> None:
    picture = (cases["other-picture-ends"] / "a.png").read_bytes()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture)
    (tmp_path / "loop").symlink_to(tmp_path)
    rows, rejected = listed(tmp_path)
    assert [row["id"] for row in rows] == ["pictures/a.png", "pictures/b.png"]
    assert count_kinds(rejected) == {"repeated folder": 1}
    lines = [f"{name},{name} {number}" for name in ("a.png", "b.png") for number in range(5)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    source = PictureSource(path=str(tmp_path / "captions.csv"))
    for config in (source, replace(source, captions="drawn")):
        rows = list(list_rows(config))
        assert len([row for row in rows if isinstance(row, dict)]) == 2
        assert count_kinds(row for row in rows if isinstance(row, Rejected)) == {
            "further caption": 8
        }


def test_every_case_has_a_test(cases: dict[str, Path]) -> None:
    metadata = (Path(__file__).parent / "test_metadata_cases.py").read_text()
    here = {*PROMPTS, *SIDECARS, "unreadable-script"}
    assert [case for case in cases if case not in here and f'"{case}"' not in metadata] == []
