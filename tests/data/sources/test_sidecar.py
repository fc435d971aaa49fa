import imagecodecs
import numpy as np
from source_locations import SourceLocation, encoded, read_all

from img2prompt.data.images import decode

PICTURES = [encoded(5, 3), encoded(6, 3, "jpg"), encoded(7, 3, "webp")]


def test_sidecars_in_all_folders(location) -> None:
    location.write("a.png", PICTURES[0])
    location.write("a.txt", b"a cat\r\n")
    location.write("a.q.png", PICTURES[0])
    location.write("a.q.txt", b"between a.png and a.txt")
    location.write("z/deep/b 1#.JPG", PICTURES[1])
    location.write("z/deep/b 1#.txt", b"\xef\xbb\xbfa dog,\nrunning")
    location.write("z/c.webp", PICTURES[2])
    location.write("z/c.txt", "caf\u00e9".encode())
    location.write("z/notes.md", b"not read")
    location.write("z/._c.webp", b"\0\5\x16\7")
    rows, rejected = location.list(name="side")
    assert [(row.kind, row.count) for row in rejected] == [
        ("left out system files", 1),
        ("left out .md", 1),
    ]
    assert [(row["id"], row["prompt"], row["width"]) for row in rows] == [
        ("side/a.png", "a cat", 5),
        ("side/a.q.png", "between a.png and a.txt", 5),
        ("side/z/c.webp", "caf\u00e9", 7),
        ("side/z/deep/b 1#.JPG", "a dog,\nrunning", 6),
    ]
    assert read_all(rows) == [PICTURES[0], PICTURES[0], PICTURES[2], PICTURES[1]]


def test_bad_pairs_cost_only_themselves(location) -> None:
    pairs = {"good": b"a cat", "mute": None, "blank": b"\n", "bytes": b"\xff\xfea", "broken": b"x"}
    for name, text in pairs.items():
        location.write(f"{name}.png", b"broken" if name == "broken" else PICTURES[0])
        if text is not None:
            location.write(f"{name}.txt", text)
    location.write("long.png", PICTURES[0])
    location.write("long.txt", b"x" * ((1 << 20) + 1))
    location.write("alone.txt", b"no picture")
    rows, rejected = location.list(name="s")
    assert [row["id"] for row in rows] == ["s/good.png"]
    assert [(row.id, row.kind) for row in rejected] == [
        ("s/alone.txt", "no picture"),
        ("s/blank.png", "empty prompt"),
        ("s/broken.png", "unreadable picture"),
        ("s/bytes.png", "undecodable prompt"),
        ("s/long.png", "no prompt"),
        ("s/mute.png", "no prompt"),
    ]


def test_a_name_that_is_not_utf_8_is_rejected(tmp_path) -> None:
    location = SourceLocation(str(tmp_path))
    location.write("a.png", PICTURES[0])
    location.write("a.txt", b"a cat")
    strange = tmp_path.joinpath(b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    strange.write_bytes(PICTURES[0])
    strange.with_suffix(".txt").write_bytes(b"a dog")
    rows, rejected = location.list()
    assert [row["prompt"] for row in rows] == ["a cat"]
    assert [(row.id, row.kind) for row in rejected] == [
        ("pictures/caf\\xe9.png", "unusable name"),
        ("pictures/caf\\xe9.txt", "unusable name"),
    ]


def test_every_ending_that_is_decoded_is_read(location) -> None:
    for number, form in enumerate(("png", "jpg", "webp", "avif", "gif", "bmp", "tiff")):
        location.write(f"{number}.{form}", encoded(5, 3, form))
        location.write(f"{number}.txt", b"a cat")
    location.write("7.jxl", imagecodecs.jpegxl_encode(np.zeros((3, 5, 3), np.uint8)))
    location.write("7.txt", b"a cat")
    rows, rejected = location.list()
    assert not rejected
    assert [(row["width"], row["height"]) for row in rows] == [(5, 3)] * 8
    assert all(decode(data).shape == (3, 5, 3) for data in read_all(rows))


def test_an_empty_folder_has_no_rows(tmp_path) -> None:
    assert SourceLocation(str(tmp_path)).list(format="sidecar") == ([], [])
