import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_locations import FlakyFiles, encoded

from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.data.sources import files, reader
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.containers import Zip
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.sources.rows import Rejected


def test_one_bad_picture_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"first")
    (tmp_path / "b c#.png").write_bytes(b"second")
    (tmp_path / "folder.png").mkdir()
    scene = next(list_rows(SceneSource(size=48)))
    places = [
        (str(tmp_path / "a.png"), ""),
        (str(tmp_path / "gone.png"), ""),
        (f"file://{tmp_path}/b%20c%23.png", ""),
        (str(tmp_path / "folder.png"), ""),
        (str(tmp_path / "bad\0name.png"), ""),
        (scene["uri"], scene["member"]),
    ]
    first, gone, second, folder, bad, drawn = read_pictures(places)
    assert (first, second) == (b"first", b"second")
    assert isinstance(gone, FileNotFoundError)
    assert isinstance(folder, OSError)
    assert isinstance(bad, ValueError)
    assert isinstance(drawn, bytes)


def zip_at(path: Path, names: str) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())
    return str(path)


def test_containers_are_opened_once_in_a_row(tmp_path: Path, monkeypatch) -> None:
    opened = []

    def count(uri: str) -> Zip:
        opened.append(Path(uri).name)
        return Zip(uri)

    monkeypatch.setitem(reader._CONTAINERS, ".zip", count)
    monkeypatch.setattr(reader, "_OPEN", 2)
    uris = [zip_at(tmp_path / f"{n}.zip", "abc") for n in range(3)]
    places = [(uri, name) for uri in uris for name in "abc"]
    assert list(read_pictures(places)) == [b"a", b"b", b"c"] * 3
    assert opened == ["0.zip", "1.zip", "2.zip"]
    opened.clear()
    mixed = [(uris[n], "a") for n in (0, 1, 0, 1, 2, 1, 0)]
    assert list(read_pictures(mixed)) == [b"a"] * 7
    assert opened == ["0.zip", "1.zip", "2.zip", "0.zip"]  # the longest unused one is closed


def test_a_container_that_cannot_be_opened_is_tried_once(flaky) -> None:
    zips = [flaky.write(f"{n}.zip", Path(__file__).read_bytes()) for n in range(2)]
    FlakyFiles.errors[:] = [TimeoutError("too slow")] * files.ATTEMPTS
    places = [(zips[0], "a"), (zips[0], "b"), (zips[1], "a"), (zips[1], "b")]
    errors = list(read_pictures(places))
    assert [type(error) for error in errors] == [TimeoutError] * 2 + [ValueError] * 2
    assert "damaged zip, copy or download it again: File is not a zip file" in str(errors[3])


@pytest.mark.parametrize("end", ["zip", "tar", "parquet"])
def test_random_damage_never_escapes(tmp_path: Path, end: str) -> None:
    """Every flipped byte gives the picture, another one, or an OSError or ValueError."""
    pictures = {f"{n}.png": encoded(9, 9, seed=n) for n in range(4)}
    path = tmp_path / f"a.{end}"
    if end == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in pictures.items():
                archive.writestr(name, data)
        places = [(str(path), name) for name in pictures]
    elif end == "tar":
        with tarfile.open(path, "w") as tar:
            for name, data in pictures.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        places = [(str(path), "512+200")]
    else:
        table = pa.table({"image": pa.array(pictures.values()), "prompt": list(pictures)})
        pq.write_table(table, path, row_group_size=2)
        places = [(str(path), f"{n // 2}/{n % 2}/image") for n in range(4)]
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    source = PictureSource(path=str(path), format="webdataset" if end == "tar" else "parquet")
    for at in rng.integers(0, len(good), 150):
        data = bytearray(good)
        data[at] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        for found in read_pictures(places):
            assert isinstance(found, bytes | OSError | ValueError)
        if end != "zip":
            assert all(isinstance(row, dict | Rejected) for row in list_rows(source))
