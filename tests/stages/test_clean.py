from pathlib import Path

import pyarrow as pa
import pytest

from img2prompt.artifact import Artifact, Draft
from img2prompt.config import CleanConfig, CsvSource, IndexConfig, PrepareConfig
from img2prompt.data.prompts import prompt_id
from img2prompt.data.sources import INDEX_SCHEMA, REJECTED_SCHEMA
from img2prompt.errors import UserError
from img2prompt.stages import clean, index


def row(row_id: str, prompt: str, uri: str = "", **changes) -> dict:
    return {
        "id": row_id,
        "source": "s",
        "prompt": prompt,
        "uri": uri or f"/{row_id}.png",
        "member": "",
        "width": 64,
        "height": 32,
        "generator": "",
        "seed": None,
        **changes,
    }


def index_of(folder: Path, *files: list[dict]) -> Artifact:
    draft = Draft.open(str(folder / "index"), "index", IndexConfig(sources=()), {})
    for number, rows in enumerate(files):
        table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
        draft.write_table(f"rows-{number:05d}.parquet", table)
    draft.write_table("rejected.parquet", REJECTED_SCHEMA.empty_table())
    return draft.publish()


def test_rows_are_normalised_and_judged(tmp_path: Path) -> None:
    rows = [
        row("a", " a  red\ncat "),
        row("b", "a red cat"),
        row("few", "cat"),
        row("many", "a b c d e f"),
        row("blank", "\x00 \n"),
        row("bytes", "a \ufffd cat"),
        row("small", "a red cat", height=31),
        row("edge", "a red cat", width=32, height=32),
        row("big", "a red cat", width=2000, height=1001),
        row("again", "a red\tcat", uri="/a.png"),
        row("other prompt", "a blue cat", uri="/a.png"),
        row("other member", "a red cat", uri="/a.png", member="2"),
    ]
    config = CleanConfig(min_words=2, max_words=5, min_side=32, max_megapixels=2)
    made = clean.run(config, index_of(tmp_path, rows), str(tmp_path / "clean"))
    table = made.read_tables("rows")
    assert table.schema.equals(clean.SCHEMA)
    assert table["id"].to_pylist() == ["a", "b", "edge", "other prompt", "other member"]
    assert table["prompt"].to_pylist()[:2] == ["a red cat"] * 2
    assert table["prompt_id"].to_pylist() == [prompt_id(p) for p in table["prompt"].to_pylist()]
    rejected = made.read_table("rejected.parquet").to_pydict()
    assert dict(zip(rejected["id"], rejected["reason"], strict=True)) == {
        "few": "too few words: 1; allowed: 2 to 5",
        "many": "too many words: 6; allowed: 2 to 5",
        "blank": "empty prompt: no visible character",
        "bytes": "undecodable prompt: U+FFFD at character 3; allowed: valid UTF-8",
        "small": "picture size: picture is 64 x 31 pixels; allowed: 32 or more on the shorter side",
        "big": "picture size: picture is 2000 x 1001 = 2.002 megapixels; allowed: at most 2",
        "again": "repeated row: /a.png with this prompt came before",
    }
    assert made.counts["rows"] == 5
    assert sum(made.counts["rejected"].values()) == 7


def test_repeats_are_found_across_files(tmp_path: Path) -> None:
    files = [[row("a", "a cat", "/x.png")], [row("b", "a cat", "/x.png"), row("c", "a dog")], []]
    made = clean.run(CleanConfig(), index_of(tmp_path, *files), str(tmp_path / "clean"))
    assert [made.files[name].rows for name in made.names("rows")] == [1, 1, 0]
    assert made.read_tables("rows")["id"].to_pylist() == ["a", "c"]


def test_finished_is_skipped_and_another_config_is_refused(tmp_path: Path) -> None:
    rows = index_of(tmp_path, [row("a", "a cat")])
    made = clean.run(CleanConfig(), rows, str(tmp_path / "clean"))
    assert clean.run(CleanConfig(), rows, str(tmp_path / "clean")) == made
    with pytest.raises(UserError, match=r"min_words"):
        clean.run(CleanConfig(min_words=2), rows, str(tmp_path / "clean"))


def test_no_fit_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"too few words.*--clean"):
        clean.run(
            CleanConfig(min_words=9), index_of(tmp_path, [row("a", "cat")]), str(tmp_path / "c")
        )


def test_real_pictures_of_one_prompt_are_all_kept(tmp_path: Path, shared_data) -> None:
    source = CsvSource(csv=str(shared_data / "pictures.csv"), name="real")
    listed = index.run(PrepareConfig(name="t", sources=(source,)), str(tmp_path / "index"))
    made = clean.run(CleanConfig(), listed, str(tmp_path / "clean"))
    # One prompt is a story of 587 words.
    assert made.counts == {"rows": 846, "rejected": {"too many words": 1}}
    assert len(set(made.read_tables("rows")["prompt_id"].to_pylist())) == 685
