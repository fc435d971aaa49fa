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


@pytest.mark.parametrize("names", [[], ["notes.txt", "png"]])
def test_folders_without_pictures_are_refused(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path, *names)
    with pytest.raises(UserError, match=r"contains no picture; looked for \.png, \.jpg"):
        list_pictures(str(tmp_path))


@pytest.mark.parametrize("folder", ["", "absent"])
def test_a_missing_folder_is_named(tmp_path: Path, folder: str) -> None:
    path = str(tmp_path / folder) if folder else ""
    with pytest.raises(UserError, match=rf"pictures is '{path}': give a folder .*--pictures"):
        list_pictures(path)
