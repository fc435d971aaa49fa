from pathlib import Path

from img2prompt.config import SceneSource
from img2prompt.data.sources import list_rows, read_pictures


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
