import errno
import io
import logging
from unittest.mock import Mock

import pyarrow.fs as pafs
import pytest
from source_locations import FlakyFiles, SourceLocation, encoded, read_all

from img2prompt.data.sources import files, listing
from img2prompt.data.sources.files import SteadyFile, inside, relative
from img2prompt.errors import UserError

PICTURE = encoded(30, 20)


@pytest.mark.parametrize("name", ["a.png", "in/a b#1%20?.png", "caf\u00e9.png"])
def test_any_name_can_be_opened(location, name: str) -> None:
    location.write("list.csv", b"file,prompt\n" + name.encode() + b",a cat\n")
    location.write(name, PICTURE)
    uri = location.root if "://" in location.root else f"file://{location.root}"
    for root in (location.root, uri):
        (row,), rejected = SourceLocation(root).list("list.csv")
        assert not rejected
        assert row["id"] == f"pictures/{name}"
        assert read_all([row]) == [PICTURE]


def test_absolute_names_are_unchanged() -> None:
    assert inside("/data", "/other/a.png") == "/other/a.png"
    assert inside("s3://bucket/set", "s3://other/a.png") == "s3://other/a.png"


@pytest.mark.parametrize("folder", ["/data", "s3://bucket/set", "fsspec+hf://a/b", "/"])
def test_names_in_a_folder_are_told_from_their_uris(folder: str) -> None:
    for name in ("a.png", "in/a b#1%20?.png"):
        assert relative(folder, inside(folder, name)) == name
    for other in ("s3://bucket/settings/a.png", "a.png"):
        assert relative(folder, other) == other


def test_a_steady_file_behaves_like_a_file(location) -> None:
    data = bytes(range(256)) * 500
    uri = location.write("data.bin", data)
    with SteadyFile(uri) as steady:
        plain = io.BytesIO(data)
        for offset, whence, size in [(5, 0, 10), (3, 1, 100), (-7, 2, 50), (0, 0, -1), (10, 2, 4)]:
            assert steady.seek(offset, whence) == plain.seek(offset, whence)
            assert steady.read(size) == plain.read(size)
            assert steady.tell() == plain.tell()
        assert steady.read_at(10, len(data) + 5) == b""
        with pytest.raises(OSError, match=r"position -1"):
            steady.seek(-1)


def test_transient_errors_are_retried(flaky, caplog) -> None:
    flaky.write("a.csv", b"file,prompt\na.png,a cat\n")
    flaky.write("a.png", PICTURE)
    passing = [OSError("AWS Error NETWORK_CONNECTION"), ConnectionResetError("gone")]
    FlakyFiles.errors[:] = passing
    with caplog.at_level(logging.WARNING):
        (row,), rejected = flaky.list("a.csv")
    assert not rejected
    assert "ConnectionResetError: gone" in caplog.text
    FlakyFiles.errors[:] = [OSError(errno.EIO, "I/O error")] * (files.ATTEMPTS - 1)
    assert read_all([row]) == [PICTURE]


def test_lasting_errors_are_returned(flaky) -> None:
    for name in ("a", "b", "c"):
        flaky.write(f"{name}.png", PICTURE)
        flaky.write(f"{name}.txt", b"a cat")
    rows, _ = flaky.list()
    FlakyFiles.errors[:] = [TimeoutError("too slow")] * files.ATTEMPTS
    first, second, third = read_all(rows)
    assert isinstance(first, TimeoutError)
    assert (second, third) == (PICTURE, PICTURE)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "no"),
        FileNotFoundError(errno.ENOENT, "no"),
        OSError("AWS Error ACCESS_DENIED"),
        OSError(errno.ENAMETOOLONG, "long"),
        ValueError("bug"),
    ],
)
def test_permanent_errors_are_not_retried(flaky, error: Exception) -> None:
    uri = flaky.write("a.png", PICTURE)
    FlakyFiles.errors[:] = [error, error]
    with pytest.raises(type(error)):
        files.read_bytes(uri)
    assert FlakyFiles.errors == [error]


def test_a_huge_file_is_not_read(location, monkeypatch) -> None:
    monkeypatch.setattr(files, "LARGEST_BYTES", 100)
    uri = location.write("a.png", b"x" * 101)
    with pytest.raises(ValueError, match="101 bytes; allowed: at most 100"):
        files.read_bytes(uri)


def test_walk_and_digest(location) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", "c/d.txt"):
        location.write(name, name.encode())
    names = [entry.name for entry in listing.walk(location.root)]
    assert names == ["a/", "b.txt", "c/", "a/b/", "a/z.txt", "a/b/c.txt", "c/d.txt"]
    assert listing.names(location.root) == ["a/", "b.txt", "c/"]
    before = listing.digest(location.root)
    assert listing.digest(location.root) == before
    location.write("a/b/new.txt", b"")
    assert listing.digest(location.root) != before


def test_folders_that_cannot_be_listed(location, monkeypatch) -> None:
    location.write("in/a.png", PICTURE)
    entries = listing.walk(location.root)
    assert next(entries).name == "in/"
    error = PermissionError(errno.EACCES, "no")
    monkeypatch.setattr(listing, "steadily", Mock(side_effect=error))
    with pytest.raises(
        UserError, match=r"/in/ cannot be listed .*: make it readable or move it away"
    ):
        next(entries)


def test_each_folder_is_listed_once(tmp_path) -> None:
    for name in ("a/1.png", "b/2.png", "elsewhere/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a", "b"):
        (tmp_path / name).rename(root / name)
    (root / "a" / "loop").symlink_to(root)
    (root / "again").symlink_to("b")
    (root / "gone.png").symlink_to("nowhere")
    (root / "itself.png").symlink_to("itself.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "up").symlink_to("..")
    entries = list(listing.walk(str(root)))
    usable = [e.name for e in entries if not e.problem and not e.name.endswith("/")]
    assert usable == ["a/1.png", "b/2.png", "linked/3.png"]
    assert {e.name: e.problem.partition(" ")[0] for e in entries if e.problem} == {
        "a/loop/": "repeated",
        "again/": "repeated",
        "gone.png": "broken",
        "itself.png": "broken",
        "up/": "repeated",
    }
    location = SourceLocation(str(root))
    for name in ("a/1.png", "b/2.png", "linked/3.png"):
        location.write(name, PICTURE)
    rows, rejected = location.list(format="metadata")
    assert not rows
    assert sorted(row.kind for row in rejected) == [
        *["broken link"] * 2,
        *["no prompt"] * 3,
        *["repeated folder"] * 3,
    ]


def test_the_digest_is_that_of_pyarrows_listing(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(b"12345")
    (entry,) = listing.walk(str(tmp_path))
    info = pafs.LocalFileSystem().get_file_info(str(tmp_path / "a.txt"))
    assert (entry.size, entry.changed) == (info.size, info.mtime_ns)


def test_folders_whose_names_are_not_utf_8(tmp_path) -> None:
    strange = tmp_path.joinpath(b"caf\xe9".decode("utf-8", "surrogateescape"))
    strange.mkdir()
    (strange / "a.png").write_bytes(PICTURE)
    _, (rejected,) = SourceLocation(str(tmp_path)).list(format="metadata")
    assert rejected.id == "pictures/caf\\xe9"
    assert rejected.reason == listing.NOT_UTF_8
