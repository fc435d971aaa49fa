from pathlib import Path

import pytest

from img2prompt.errors import UserError
from img2prompt.predict.pictures import list_pictures


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_pictures_of_sub_folders_are_listed_by_path(tmp_path: Path) -> None:
    write(tmp_path, "b.PNG", "sub/b.PNG", "a,b.webp", "ä c.jpeg", "x.jpg", "x.png", "notes.txt")
    (tmp_path / "folder.png").mkdir()
    pictures = list_pictures(str(tmp_path))
    names = ["a,b.webp", "b.PNG", "sub/b.PNG", "x.jpg", "x.png", "ä c.jpeg"]
    assert pictures.uris == {name: f"{tmp_path}/{name}" for name in names}
    assert list(pictures.uris) == names
    before = pictures.fingerprint
    assert list_pictures(str(tmp_path)).fingerprint == before
    (tmp_path / "sub/b.PNG").write_bytes(b"xy")
    assert list_pictures(str(tmp_path)).fingerprint != before


def test_one_picture(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, "a.png", "b.png")
    path = str(tmp_path / "a.png")
    assert list_pictures(path).uris == {"a.png": path}
    monkeypatch.chdir(tmp_path)
    assert list_pictures("a.png").fingerprint == list_pictures(path).fingerprint


def test_one_picture_by_its_uri(tmp_path: Path) -> None:
    write(tmp_path, "my cat#1.png")
    uri = f"file://{tmp_path}/my%20cat%231.png"
    pictures = list_pictures(uri)
    assert pictures.uris == {"my cat#1.png": uri}
    assert pictures.fingerprint == list_pictures(str(tmp_path / "my cat#1.png")).fingerprint


def test_files_that_are_not_predicted_are_counted_or_named(tmp_path: Path) -> None:
    write(tmp_path, "good.png", "a.md", "sub/b.md", "._good.png", "plain")
    with open(bytes(tmp_path) + b"/\xff.png", "w"):
        pass
    (tmp_path / "gone.png").symlink_to("nowhere")
    pictures = list_pictures(str(tmp_path))
    assert list(pictures.uris) == ["good.png"]
    kinds = {row.kind: row.count for row in pictures.rejected}
    assert kinds["left out .md"] == 2
    assert kinds["left out system files"] == 1
    reasons = {row.id: row.reason for row in pictures.rejected}
    assert reasons["gone.png"] == "broken link: nowhere does not exist"
    assert "its bytes are not UTF-8" in reasons["\\xff.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"contains no picture; looked for \.png, \.jpg"),
        (["notes.txt", "png"], r"(?s)contains no picture.*left out \.txt: 1 file, such as notes"),
    ],
)
def test_folders_without_pictures_are_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    write(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        list_pictures(str(tmp_path))


@pytest.mark.parametrize("folder", ["", "absent"])
def test_a_missing_folder_is_named(tmp_path: Path, folder: str) -> None:
    path = str(tmp_path / folder) if folder else ""
    with pytest.raises(UserError, match=rf"pictures is '{path}': give a folder .*--pictures"):
        list_pictures(path)
