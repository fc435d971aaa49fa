import io

import pytest
from PIL import Image, PngImagePlugin
from source_places import Place, encoded, read_all

PICTURES = [encoded(5, 3), encoded(6, 3, "jpg"), encoded(7, 3, "webp")]


def carrying(**texts: str) -> bytes:
    """A PNG with text chunks."""
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    sink = io.BytesIO()
    Image.new("RGB", (20, 10)).save(sink, "PNG", pnginfo=info)
    return sink.getvalue()


def test_sidecars_in_all_folders(place) -> None:
    place.write("a.png", PICTURES[0])
    place.write("a.txt", b"a cat\r\n")
    place.write("a.q.png", PICTURES[0])
    place.write("a.q.txt", b"between a.png and a.txt")
    place.write("z/deep/b 1#.JPG", PICTURES[1])
    place.write("z/deep/b 1#.txt", b"\xef\xbb\xbfa dog,\nrunning")
    place.write("z/c.webp", PICTURES[2])
    place.write("z/c.txt", "caf\u00e9".encode())
    place.write("z/notes.md", b"not read")
    rows, rejected = place.list(name="side")
    assert not rejected
    assert [(row["id"], row["prompt"], row["width"]) for row in rows] == [
        ("side/a.png", "a cat", 5),
        ("side/a.q.png", "between a.png and a.txt", 5),
        ("side/z/c.webp", "caf\u00e9", 7),
        ("side/z/deep/b 1#.JPG", "a dog,\nrunning", 6),
    ]
    assert read_all(rows) == [PICTURES[0], PICTURES[0], PICTURES[2], PICTURES[1]]


def test_bad_pairs_cost_only_themselves(place) -> None:
    pairs = {"good": b"a cat", "mute": None, "blank": b"\n", "bytes": b"\xff\xfea", "broken": b"x"}
    for name, text in pairs.items():
        place.write(f"{name}.png", b"broken" if name == "broken" else PICTURES[0])
        if text is not None:
            place.write(f"{name}.txt", text)
    place.write("long.png", PICTURES[0])
    place.write("long.txt", b"x" * ((1 << 20) + 1))
    place.write("alone.txt", b"no picture")
    rows, rejected = place.list(name="s")
    assert [row["id"] for row in rows] == ["s/good.png"]
    assert [(row.id, row.kind) for row in rejected] == [
        ("s/alone.txt", "no picture"),
        ("s/blank.png", "empty prompt"),
        ("s/broken.png", "unreadable picture"),
        ("s/bytes.png", "undecodable prompt"),
        ("s/long.png", "no prompt"),
        ("s/mute.png", "no prompt"),
    ]


def test_a_name_that_is_no_utf_8_is_told(tmp_path) -> None:
    place = Place(str(tmp_path))
    place.write("a.png", PICTURES[0])
    place.write("a.txt", b"a cat")
    strange = tmp_path.joinpath(b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    strange.write_bytes(PICTURES[0])
    strange.with_suffix(".txt").write_bytes(b"a dog")
    rows, (rejected,) = place.list()
    assert [row["prompt"] for row in rows] == ["a cat"]
    assert rejected.id == "pictures/caf\\xe9.png"


def test_pictures_that_carry_their_prompt(place) -> None:
    text = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 5"
    place.write("in/a.png", carrying(parameters=text))
    place.write("b.png", carrying())
    place.write("c.png", b"broken")
    place.write("d.png", b"")
    (row,), rejected = place.list(name="own")
    assert (row["id"], row["prompt"], row["width"], row["height"]) == (
        "own/in/a.png",
        "a cat",
        20,
        10,
    )
    settings = ("seed", "steps", "cfg", "sampler", "generator")
    assert [row[key] for key in settings] == [5, 20, 7.5, "Euler a", "automatic1111"]
    assert [(row.id, row.kind) for row in rejected] == [
        ("own/b.png", "no prompt"),
        ("own/c.png", "unreadable picture"),
        ("own/d.png", "unreadable picture"),
    ]
    (single,), _ = place.list("in/a.png", name="own")
    assert single == {**row, "id": "own/a.png"}


@pytest.mark.parametrize("form", ["sidecar", "metadata"])
def test_an_empty_folder_has_no_rows(tmp_path, form) -> None:
    assert Place(str(tmp_path)).list(format=form) == ([], [])


def test_real_pictures_that_carry_a_graph(shared_data) -> None:
    rows, rejected = Place(str(shared_data / "pictures")).list(format="metadata", name="own")
    assert len(rows) + len(rejected) == 847
    assert len(rows) >= 15
    assert {row["generator"] for row in rows} == {"comfyui"}
    assert all(row["width"] >= 512 for row in rows)
