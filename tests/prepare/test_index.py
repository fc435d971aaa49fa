import tarfile
from pathlib import Path

import pytest
from PIL import Image

from img2prompt import draft as draft_module
from img2prompt.config.prepare import IndexConfig, PrepareConfig
from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.data.sources import sidecar
from img2prompt.data.sources.catalogue import portions
from img2prompt.data.sources.detect import resolve
from img2prompt.data.sources.rows import INDEX_SCHEMA, REJECTED_SCHEMA
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.prepare import index
from img2prompt.storage import write_bytes
from img2prompt.workspace import IndexFolder, Stage

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def csv_source(folder: Path, lines: list[str], name: str = "mine") -> PictureSource:
    for picture in ("a", "c", "d"):
        Image.new("RGB", (20, 30), "red").save(folder / f"{picture}.png")
    (folder / f"{name}.csv").write_text("\n".join(["id,file,prompt", *lines]))
    return PictureSource(path=str(folder / f"{name}.csv"), name=name)


def config_of(*sources: PictureSource | SceneSource, **changes) -> PrepareConfig:
    return PrepareConfig(name="test", sources=sources, **changes)


def test_all_sources_in_order_with_rejected_rows(tmp_path: Path) -> None:
    first = csv_source(tmp_path, ["x,a.png,a cat", "y,gone.png,a cat", "z,c.png,a dog"], "one")
    second = csv_source(tmp_path, ["x,a.png,a cow", "x,c.png,a pig", ",d.png,a hen"], "two")
    scenes = SceneSource(prompts=2, pictures_per_prompt=2)
    made = index.run(config_of(first, scenes, second), str(tmp_path / "out"))
    table = made.read_tables("rows")
    assert table.schema.equals(INDEX_SCHEMA)
    ids = table["id"].to_pylist()
    assert [*ids[:2], *ids[-2:]] == ["one/x", "one/z", "two/x", "two/d.png"]
    assert set(table["source"].to_pylist()[2:6]) == {"scenes"}
    rejected = made.read_tables("rejected")
    assert rejected.schema.equals(REJECTED_SCHEMA)
    assert rejected["id"].to_pylist() == ["one/y", "two/x"]
    assert made.counts == {"rows": 8, "rejected": {"missing picture": 1, "repeated id": 1}}


def test_files_left_out_are_counted_by_ending(tmp_path: Path) -> None:
    (tmp_path / "side").mkdir()
    Image.new("RGB", (20, 30)).save(tmp_path / "side" / "a.png")
    for name in ("a.txt", "b.md", "c.md", "d.mp4"):
        (tmp_path / "side" / name).write_text("a cat")
    source = PictureSource(path=str(tmp_path / "side"), name="side")
    made = index.run(config_of(source), str(tmp_path / "out"))
    assert made.counts == {"rows": 1, "rejected": {"left out .md": 2, "left out .mp4": 1}}
    assert made.read_tables("rejected")["id"].to_pylist() == ["side/*.md", "side/*.mp4"]


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


def test_rows_of_portions_are_gathered_in_one_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sidecar, "PORTION", 2)
    monkeypatch.setattr(index, "ROWS_PER_FILE", 3)
    (tmp_path / "side").mkdir()
    for number in range(5):
        Image.new("RGB", (20, 30)).save(tmp_path / "side" / f"{number}.png")
        if number != 3:
            (tmp_path / "side" / f"{number}.txt").write_text("a cat")
    source = PictureSource(path=str(tmp_path / "side"), name="side", format="sidecar")
    made = index.run(config_of(source, SceneSource(prompts=2)), str(tmp_path / "out"))
    assert {name: receipt.rows for name, receipt in sorted(made.files.items())} == {
        "rejected-00000.parquet": 1,
        "rows-00000.parquet": 3,
        "rows-00001.parquet": 3,
        "rows-00002.parquet": 2,
    }
    ids = made.read_tables("rows")["id"].to_pylist()
    assert ids[:5] == [*(f"side/{number}.png" for number in (0, 1, 2, 4)), "scenes/000000-0"]
    assert not (tmp_path / "out" / "listed").exists()


def test_rejected_rows_are_written_in_pieces(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(index, "ROWS_PER_FILE", 2)
    lines = [f"{n},gone{n}.png,a cat" for n in range(5)]
    config = config_of(csv_source(tmp_path, ["x,a.png,a cat", *lines]))
    made = index.run(config, str(tmp_path / "out"))
    assert [made.files[name].rows for name in made.names("rejected")] == [2, 2, 1]
    assert made.read_tables("rejected")["id"].to_pylist() == [f"mine/{n}" for n in range(5)]


def test_a_finished_index_is_skipped(tmp_path: Path, monkeypatch) -> None:
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


def listed_twice(folder: Path) -> tuple[PrepareConfig, PictureSource, PictureSource]:
    """Two sources with a repeated id each; a picture of the second is gone."""
    lines = ["x,a.png,a cat", "x,c.png,a hen"]
    first = csv_source(folder, lines, "one")
    second = csv_source(folder, [*lines, "y,b.png,a dog"], "two")
    return config_of(first, second), first, second


def test_a_killed_index_resumes_with_unfinished_portions(tmp_path: Path) -> None:
    config, first, second = listed_twice(tmp_path)
    out, whole = tmp_path / "out", index.run(config, str(tmp_path / "whole"))
    own = IndexConfig(sources=config.sources)
    Draft.open(str(out), "index", own, whole.inputs)
    parts = Draft.open(IndexFolder(str(out)).portions, Stage.PORTIONS, own, whole.inputs)
    for number, source in enumerate(map(resolve, (first, second))):
        index._list_portion(parts, index._name(number), source, next(portions(source)))
    assert index._is_settled(parts, index._name(0))
    assert not index._is_settled(parts, index._name(1))  # b.png may be there by now
    Image.new("RGB", (40, 30)).save(tmp_path / "b.png")
    made = index.run(config, str(out))
    assert made.counts == {"rows": 3, "rejected": {"repeated id": 2}}
    assert made.read_tables("rows")["id"].to_pylist() == ["one/x", "two/x", "two/y"]
    assert whole.counts["rejected"] == {"repeated id": 2, "missing picture": 1}


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_a_kill_while_rows_are_gathered_changes_nothing(
    tmp_path: Path, monkeypatch, last: int
) -> None:
    """Before each file, or between it and its receipt."""
    config, *_ = listed_twice(tmp_path)
    whole = index.run(config, str(tmp_path / "whole"))
    names: list[str] = []

    def killed(uri: str, data: bytes) -> None:
        if "/index/r" in uri:  # rows, rejected and their receipts
            names.append(uri)
            if len(names) > last:
                raise KeyboardInterrupt
        write(uri, data)

    write = write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(draft_module, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            index.run(config, str(tmp_path / "index"))
    made = index.run(config, str(tmp_path / "index"))
    assert (made.files, made.fingerprint) == (whole.files, whole.fingerprint)


def test_an_unfinished_index_of_changed_sources_starts_over(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    config = config_of(csv_source(tmp_path, ["x,a.png,a cat", "y,c.png,a dog"]))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(index, "_gather", lambda parts, draft: (out / "left.parquet").touch())
        patch.setattr(index, "delete_folder", lambda uri: None)
        index.run(config, str(out))
    csv_source(tmp_path, ["z,a.png,a hen"])
    made = index.run(config, str(out))
    assert "starts over: it differs in: inputs.mine" in caplog.text
    assert made.read_tables("rows")["id"].to_pylist() == ["mine/z"]
    assert sorted(path.stem for path in out.glob("*.parquet")) == ["rejected-00000", "rows-00000"]


def test_no_usable_row_is_an_error_with_reasons(tmp_path: Path) -> None:
    config = config_of(csv_source(tmp_path, ["x,gone.png,a cat"]))
    with pytest.raises(UserError, match=r"missing picture.*\n  mine/x: .*gone.png does not exist"):
        index.run(config, str(tmp_path / "out"))
    Image.new("RGB", (20, 30)).save(tmp_path / "gone.png")  # a disk was mounted
    assert index.run(config, str(tmp_path / "out")).counts == {"rows": 1, "rejected": {}}


def test_a_second_gathering_deletes_the_files_of_the_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(index, "ROWS_PER_FILE", 2)
    config = config_of(csv_source(tmp_path, [f"{n},no{n}.png,a cat" for n in range(5)]))
    with pytest.raises(UserError, match="no row of"):
        index.run(config, str(tmp_path / "out"))
    for n in range(5):
        Image.new("RGB", (20, 30)).save(tmp_path / f"no{n}.png")
    made = index.run(config, str(tmp_path / "out"))
    assert [made.files[name].rows for name in made.names()] == [0, 2, 2, 1]
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 4


def test_real_pictures(tmp_path: Path, shared_data) -> None:
    config = config_of(PictureSource(path=str(shared_data / "pictures.csv"), name="real"))
    made = index.run(config, str(tmp_path / "out"))
    assert made.counts == {"rows": 847, "rejected": {}}
    assert len(set(made.read_tables("rows")["prompt"].to_pylist())) == 686
