import io

from PIL import Image, PngImagePlugin
from source_locations import SourceLocation


def with_texts(**texts: str) -> bytes:
    """Return a PNG with text chunks."""
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    sink = io.BytesIO()
    Image.new("RGB", (20, 10)).save(sink, "PNG", pnginfo=info)
    return sink.getvalue()


def test_pictures_that_contain_their_prompt(location) -> None:
    text = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 5"
    location.write("in/a.png", with_texts(parameters=text))
    location.write("b.png", with_texts())
    location.write("c.png", b"broken")
    location.write("d.png", b"")
    (row,), rejected = location.list(name="own")
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
    (single,), _ = location.list("in/a.png", name="own")
    assert single == {**row, "id": "own/a.png"}


def test_an_empty_folder_has_no_rows(tmp_path) -> None:
    assert SourceLocation(str(tmp_path)).list(format="metadata") == ([], [])


def test_real_pictures_that_contain_a_graph(shared_data) -> None:
    rows, rejected = SourceLocation(str(shared_data / "pictures")).list(
        format="metadata", name="own"
    )
    assert len(rows) + len(rejected) == 847
    assert len(rows) >= 15
    assert {row["generator"] for row in rows} == {"comfyui"}
    assert all(row["width"] >= 512 for row in rows)
