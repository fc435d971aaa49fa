import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from img2prompt.artifact import Draft
from img2prompt.config import IndexConfig, PictureSource, PrepareConfig, SceneSource
from img2prompt.data.sources import INDEX_SCHEMA, REJECTED_SCHEMA, folder, portions, resolve
from img2prompt.errors import UserError
from img2prompt.stages import index

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def csv_source(folder: Path, lines: list[str], name: str = "mine") -> PictureSource:
    Image.new("RGB", (20, 30), "red").save(folder / "a.png")
    (folder / f"{name}.csv").write_text("\n".join(["id,file,prompt", *lines]))
    return PictureSource(path=str(folder / f"{name}.csv"), name=name)


def config_of(*sources: PictureSource | SceneSource, **changes) -> PrepareConfig:
    return PrepareConfig(name="test", sources=sources, **changes)


def test_all_sources_in_order_with_rejected_rows(tmp_path: Path) -> None:
    first = csv_source(tmp_path, ["x,a.png,a cat", "y,gone.png,a cat", "z,a.png,a dog"], "one")
    second = csv_source(tmp_path, ["x,a.png,a cow", "x,a.png,a pig", ",a.png,a hen"], "two")
    scenes = SceneSource(prompts=2, pictures_per_prompt=2)
    made = index.run(config_of(first, scenes, second), str(tmp_path / "out"))
    table = made.read_tables("rows")
    assert table.schema.equals(INDEX_SCHEMA)
    ids = table["id"].to_pylist()
    assert [*ids[:2], *ids[-2:]] == ["one/x", "one/z", "two/x", "two/a.png"]
    assert set(table["source"].to_pylist()[2:6]) == {"scenes"}
    rejected = made.read_tables("rejected")
    assert rejected.schema.equals(REJECTED_SCHEMA)
    assert rejected["id"].to_pylist() == ["one/y", "two/x"]
    assert made.counts == {"rows": 8, "rejected": {"missing picture": 1, "repeated id": 1}}


def test_sources_of_several_formats_keep_their_names(tmp_path: Path) -> None:
    table = csv_source(tmp_path, ["x,a.png,a cat", ",gone.png,a cat"], "table")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "side").mkdir()
    (tmp_path / "side" / "a.png").write_bytes(data)
    (tmp_path / "side" / "a.txt").write_text("a dog")
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        tar.add(tmp_path / "side" / "a.png", "s.png")
        tar.add(tmp_path / "side" / "a.txt", "s.txt")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "one.tar").read_bytes()[:600])
    sources = [
        PictureSource(path=str(tmp_path / path), name=name)
        for name, path in (("side", "side"), ("web", "one.tar"), ("cut", "cut.tar"))
    ]
    made = index.run(config_of(table, *sources), str(tmp_path / "out"))
    rows = made.read_tables("rows").to_pylist()
    assert [(row["source"], row["id"], row["width"]) for row in rows] == [
        ("table", "table/x", 20),
        ("side", "side/a.png", 20),
        ("web", "web/one.tar/s", 20),
    ]
    assert made.counts["rejected"] == {"missing picture": 1, "damaged tar": 1}
    assert list(made.inputs) == ["table", "side", "web", "cut"]


def test_each_portion_and_each_piece_has_a_file(tmp_path: Path, monkeypatch) -> None:
    """Portions are listed by tasks, in any order; pieces of one bound what is in memory."""
    monkeypatch.setattr(folder, "PORTION", 2)
    (tmp_path / "side").mkdir()
    for number in range(5):
        Image.new("RGB", (20, 30)).save(tmp_path / "side" / f"{number}.png")
        if number != 3:
            (tmp_path / "side" / f"{number}.txt").write_text("a cat")
    source = PictureSource(path=str(tmp_path / "side"), name="side", format="sidecar")
    made = index.run(config_of(source, SceneSource(prompts=2)), str(tmp_path / "out"))
    assert [made.files[name].rows for name in made.names("rows")] == [2, 1, 1, 4]
    assert [made.files[name].rows for name in made.names("rejected")] == [0, 1, 0, 0, 0]
    assert made.names("rows")[-1] == "rows-00003-000.parquet"
    ids = made.read_tables("rows")["id"].to_pylist()
    assert ids[:4] == [f"side/{number}.png" for number in (0, 1, 2, 4)]

    monkeypatch.setattr(index, "ROWS_PER_FILE", 4)
    draft = Draft.open(str(tmp_path / "pieces"), "index", IndexConfig(sources=()), {})
    assert (
        index._make(draft, 7, SceneSource(prompts=5, pictures_per_prompt=2), list(range(5))) == 10
    )
    rows = {name: receipt.rows for name, receipt in sorted(draft.receipts().items())}
    assert rows == {
        "rejected-00007.parquet": 0,
        "rows-00007-000.parquet": 4,
        "rows-00007-001.parquet": 4,
        "rows-00007-002.parquet": 2,
    }


def test_a_finished_index_is_not_made_again(tmp_path: Path, monkeypatch) -> None:
    config = config_of(csv_source(tmp_path, ["x,a.png,a cat"]))
    made = index.run(config, str(tmp_path / "out"))
    monkeypatch.setattr(index, "portions", None)
    assert index.run(config, str(tmp_path / "out")) == made
    # Later stages' settings do not concern the index.
    changed = config.replace({"clean.min_words": 3, "group.seed": 5})
    assert index.run(changed, str(tmp_path / "out")) == made


def test_a_changed_csv_is_refused(tmp_path: Path) -> None:
    config = config_of(csv_source(tmp_path, ["x,a.png,a cat"]))
    index.run(config, str(tmp_path / "out"))
    csv_source(tmp_path, ["x,a.png,a dog"])
    with pytest.raises(UserError, match=r"inputs\.mine"):
        index.run(config, str(tmp_path / "out"))


def test_a_killed_index_goes_on_with_the_portions_that_are_not_finished(
    tmp_path: Path, monkeypatch
) -> None:
    lines = ["x,a.png,a cat", "y,gone.png,a dog", "x,a.png,a hen"]
    first, second = (csv_source(tmp_path, lines, name) for name in ("one", "two"))
    config, out = config_of(first, second, first.replace({"name": "three"})), tmp_path / "out"
    whole = index.run(config, str(tmp_path / "whole"))

    # A kill after the first portion, while the third is listed: its rows are there, and not all.
    draft = Draft.open(str(out), "index", IndexConfig(sources=config.sources), whole.inputs)
    source = resolve(first)
    index._make(draft, 0, source, next(portions(source)))
    before = (out / "rows-00000-000.parquet").stat().st_mtime_ns
    draft.write_table("rows-00002-000.parquet", INDEX_SCHEMA.empty_table())

    def killed(self: Draft, name: str, table: pa.Table) -> None:
        if name != index.REPEATS:
            raise KeyboardInterrupt(name)
        write(self, name, table)

    with monkeypatch.context() as patch:  # between the repeats' own file and those they leave
        write = Draft.write_table
        patch.setattr(Draft, "write_table", killed)
        with pytest.raises(KeyboardInterrupt, match="rows-00000-000"):
            index.run(config, str(out))
    assert (out / "rows-00000-000.parquet").stat().st_mtime_ns == before
    made = index.run(config, str(out))
    assert (
        made.counts
        == whole.counts
        == {
            "rows": 3,
            "rejected": {"missing picture": 3, "repeated id": 3},
        }
    )
    assert made.files == whole.files


def test_an_unfinished_index_of_changed_sources_is_begun_anew(tmp_path: Path, monkeypatch) -> None:
    config = config_of(csv_source(tmp_path, ["x,a.png,a cat", "y,a.png,a dog"]))
    with monkeypatch.context() as patch:
        patch.setattr(index, "_publish", lambda draft: None)
        index.run(config, str(tmp_path / "out"))
    csv_source(tmp_path, ["z,a.png,a hen"])
    made = index.run(config, str(tmp_path / "out"))
    assert made.read_tables("rows")["id"].to_pylist() == ["mine/z"]
    assert len(made.names()) == 3


def test_no_usable_row_is_an_error_with_reasons(tmp_path: Path) -> None:
    config = config_of(csv_source(tmp_path, ["x,gone.png,a cat"]))
    with pytest.raises(UserError, match=r"missing picture.*\n  mine/x: .*gone.png does not exist"):
        index.run(config, str(tmp_path / "out"))
    csv_source(tmp_path, ["x,a.png,a cat"])
    assert index.run(config, str(tmp_path / "out")).counts == {"rows": 1, "rejected": {}}


def test_real_pictures(tmp_path: Path, shared_data) -> None:
    config = config_of(PictureSource(path=str(shared_data / "pictures.csv"), name="real"))
    made = index.run(config, str(tmp_path / "out"))
    assert made.counts == {"rows": 847, "rejected": {}}
    assert len(set(made.read_tables("rows")["prompt"].to_pylist())) == 686
