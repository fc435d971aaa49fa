import tarfile
from pathlib import Path

import pytest
from PIL import Image

from img2prompt.config import PictureSource, PrepareConfig, SceneSource
from img2prompt.data.sources import INDEX_SCHEMA, REJECTED_SCHEMA
from img2prompt.errors import UserError
from img2prompt.stages import index


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


def test_rejected_rows_are_written_in_pieces(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(index, "ROWS_PER_FILE", 2)
    lines = [f"{n},gone.png,a cat" for n in range(5)]
    config = config_of(csv_source(tmp_path, ["x,a.png,a cat", *lines]))
    made = index.run(config, str(tmp_path / "out"))
    assert [made.files[name].rows for name in made.names("rejected")] == [2, 2, 1]
    assert made.read_tables("rejected")["id"].to_pylist() == [f"mine/{n}" for n in range(5)]


def test_rows_are_split_into_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(index, "ROWS_PER_FILE", 4)
    config = config_of(SceneSource(prompts=5, pictures_per_prompt=2))
    made = index.run(config, str(tmp_path / "out"))
    assert [made.files[name].rows for name in made.names("rows")] == [4, 4, 2]
    whole = index.run(config, str(tmp_path / "again"))
    assert made.read_tables("rows").equals(whole.read_tables("rows"))


def test_a_finished_index_is_not_made_again(tmp_path: Path, monkeypatch) -> None:
    config = config_of(csv_source(tmp_path, ["x,a.png,a cat"]))
    made = index.run(config, str(tmp_path / "out"))
    monkeypatch.setattr(index, "list_rows", None)
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


def test_a_killed_index_starts_over_without_leftovers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(index, "ROWS_PER_FILE", 1)
    config = config_of(csv_source(tmp_path, ["x,a.png,a cat", "y,a.png,a dog", "z,b.png,a hen"]))
    Image.new("RGB", (20, 30)).save(tmp_path / "b.png")

    def killed(rejected):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index, "rejected_table", killed)
        with pytest.raises(KeyboardInterrupt):
            index.run(config, str(tmp_path / "out"))
    (tmp_path / "b.png").unlink()
    made = index.run(config, str(tmp_path / "out"))
    assert made.names() == ["rejected-00000.parquet", "rows-00000.parquet", "rows-00001.parquet"]
    assert made.read_tables("rows")["id"].to_pylist() == ["mine/x", "mine/y"]


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
