import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_locations import encoded, read_all

from img2prompt.data.sources import containers
from img2prompt.data.sources.rows import INDEX_SCHEMA

PICTURES = [encoded(5 + n, 3, form, seed=n) for n in range(4) for form in ("png", "jpg", "webp")]
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet_of(rows_per_group: int = 5, **columns: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=rows_per_group)
    return sink.getvalue()


def images_of(pictures: list[bytes | None], paths: list[str | None] | None = None) -> pa.Array:
    paths = paths or [f"{n}.png" for n in range(len(pictures))]
    cells = [{"bytes": data, "path": path} for data, path in zip(pictures, paths, strict=True)]
    return pa.array(cells, HF_IMAGE)


def prompts_of(count: int) -> list[str]:
    return [f"prompt {n}" for n in range(count)]


def test_hugging_face_layout(location, monkeypatch) -> None:
    monkeypatch.setattr(containers, "_BATCH_ROWS", 2)
    for number in range(2):
        part = PICTURES[number * 6 :][:6]
        name = f"data/train-{number:05d}-of-00002.parquet"
        location.write(
            name, parquet_of(4, image=images_of(part), text=prompts_of(6), seed=range(6))
        )
    location.write("README.md", b"a data set")
    rows, (left_out,) = location.list(name="hf")
    assert left_out.reason.startswith("left out .md: 1 file, such as README.md; ")
    pa.Table.from_pylist(rows, schema=INDEX_SCHEMA).validate(full=True)
    assert [row["prompt"] for row in rows] == prompts_of(6) * 2
    assert rows[5]["id"] == "hf/data/train-00000-of-00002.parquet/1/1"
    assert [row["member"] for row in rows[3:5]] == ["0/3/image", "1/0/image"]
    assert [(row["width"], row["height"], row["seed"]) for row in rows[5:8]] == [
        (6, 3, 5),
        (7, 3, 0),
        (7, 3, 1),
    ]
    assert read_all(rows) == PICTURES
    assert read_all(rows[::-1]) == PICTURES[::-1]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_plain_bytes_and_named_columns(location, kind) -> None:
    data = parquet_of(
        mask=pa.array([b"no"] * 3, pa.binary()),
        picture=pa.array(PICTURES[:3], kind),
        words=prompts_of(3),
        caption=["not this"] * 3,
        nsfw=[0.1, None, 0.9],
    )
    location.write("a.parquet", data)
    rows, rejected = location.list("a.parquet", file_column="picture", prompt_column="words")
    assert not rejected
    assert [row["prompt"] for row in rows] == prompts_of(3)
    assert [row["nsfw"] for row in rows] == [0.1, None, 0.9]
    assert read_all(rows) == PICTURES[:3]


def test_size_columns_leave_the_pictures_unread(location) -> None:
    columns = {"image": images_of(PICTURES[:3]), "prompt": prompts_of(3)}
    sizes = {"width": [50, None, 0], "height": [30, 3, 3]}
    location.write("a.parquet", parquet_of(**columns, **sizes))
    rows, _ = location.list()
    assert [(row["width"], row["height"]) for row in rows] == [(50, 30), (5, 3), (5, 3)]


def test_pictures_beside_the_table(location) -> None:
    location.write("pictures/a b#1.png", PICTURES[0])
    paths = ["pictures/a b#1.png", "gone.png", None]
    location.write(
        "a.parquet", parquet_of(image=images_of([None] * 3, paths), prompt=prompts_of(3))
    )
    (row,), rejected = location.list("a.parquet", name="p")
    assert (row["prompt"], row["width"], row["member"]) == ("prompt 0", 5, "")
    assert read_all([row]) == [PICTURES[0]]
    assert [(row.id, row.kind) for row in rejected] == [
        ("p/a.parquet/0/1", "missing picture"),
        ("p/a.parquet/0/2", "no picture"),
    ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a.png", "gone.png", None]),
        pa.array(["a.png", "gone.png", None], pa.large_string()),
        pa.array(["a.png", "gone.png", None], pa.string_view()),
        pa.array(["a.png", "gone.png", None]).dictionary_encode(),
        pa.array([{"path": "a.png"}, {"path": "gone.png"}, None]),
    ],
)
def test_a_named_column_of_paths(location, column) -> None:
    location.write("a.png", PICTURES[0])
    sizes = {"width": [5] * 3, "height": [3] * 3}  # they do not say what lies there
    location.write("a.parquet", parquet_of(image=column, prompt=prompts_of(3), **sizes))
    (row,), rejected = location.list("a.parquet", file_column="image")
    assert (row["prompt"], row["width"], row["member"]) == ("prompt 0", 5, "")
    assert read_all([row]) == [PICTURES[0]]
    assert [row.kind for row in rejected] == ["missing picture", "no picture"]


@pytest.mark.parametrize(
    ("column", "type_name"),
    [([1, 2], "int64"), ([[PICTURES[0]], PICTURES[:2]], "list<"), ([{"url": "a"}] * 2, "struct<")],
)
def test_a_named_column_without_pictures_is_reported_with_its_type(
    location, column, type_name: str
) -> None:
    location.write("a.parquet", parquet_of(image=pa.array(column), prompt=prompts_of(2)))
    rows, (rejected,) = location.list("a.parquet", file_column="image", name="p")
    assert not rows
    assert rejected.id == "p/a.parquet"
    assert f"image ({type_name}" in rejected.reason


def test_bad_rows_cost_only_themselves(location) -> None:
    pictures = [PICTURES[0], b"no picture", b"", PICTURES[3], PICTURES[4]]
    prompts = ["good", "a", "b", None, " "]
    location.write("a.parquet", parquet_of(image=images_of(pictures), prompt=prompts))
    rows, rejected = location.list(name="p")
    assert [row["prompt"] for row in rows] == ["good"]
    assert [(row.id, row.kind) for row in rejected] == [
        ("p/a.parquet/0/1", "unreadable picture"),
        ("p/a.parquet/0/2", "unreadable picture"),
        ("p/a.parquet/0/3", "empty prompt"),
        ("p/a.parquet/0/4", "empty prompt"),
    ]


def test_damaged_files_cost_only_themselves(location) -> None:
    good = parquet_of(2, image=images_of(PICTURES[:6]), prompt=prompts_of(6))
    metadata = pq.ParquetFile(io.BytesIO(good)).metadata
    start = metadata.row_group(1).column(0).data_page_offset
    damaged = bytearray(good)
    damaged[start : start + 30] = b"\xff" * 30
    location.write("a.parquet", good[:-100])
    location.write("b.parquet", bytes(damaged))
    location.write("c.parquet", parquet_of(prompt=prompts_of(2)))
    location.write("d.parquet", b"")
    location.write("e.parquet", good)
    rows, rejected = location.list(name="p")
    assert [row["prompt"] for row in rows] == [f"prompt {n}" for n in (0, 1, 4, 5, *range(6))]
    ids = [row.id for row in rejected]
    assert ids == ["p/a.parquet", "p/b.parquet/1", "p/c.parquet", "p/d.parquet"]
    assert [row.kind for row in rejected] == [
        "unreadable Parquet",
        "damaged Parquet",
        "no picture",
        "unreadable Parquet",
    ]
    assert "row group 1, rows 0 to 1" in rejected[1].reason
    assert "prompt (string)" in rejected[2].reason


def test_a_table_that_changed_after_it_was_listed(location) -> None:
    location.write("a.parquet", parquet_of(image=images_of(PICTURES[:3]), prompt=prompts_of(3)))
    rows, _ = location.list()
    location.write("a.parquet", parquet_of(image=images_of(PICTURES[:2]), prompt=prompts_of(2)))
    found = read_all([*rows, {**rows[0], "member": "7/0/image"}, rows[0]])
    assert found[:2] == PICTURES[:2]
    assert isinstance(found[2], FileNotFoundError)
    assert isinstance(found[3], ValueError)
    assert found[4] == PICTURES[0]
    location.write("a.parquet", parquet_of(picture=images_of(PICTURES[:2]), prompt=prompts_of(2)))
    assert [type(error) for error in read_all(rows)] == [ValueError] * 3


def test_lists_of_captions_and_views_of_text(location) -> None:
    captions = pa.array([["a fox", "a red fox"], ["a whale"], []], pa.list_(pa.string()))
    location.write("a.parquet", parquet_of(image=images_of(PICTURES[:3]), caption=captions))
    views = pa.array(["a fox", "a whale"], pa.string_view())
    location.write("b.parquet", parquet_of(image=images_of(PICTURES[:2]), text=views))
    rows, (rejected,) = location.list()
    assert [row["prompt"] for row in rows] == ["a fox", "a whale", "a fox", "a whale"]
    assert rejected.kind == "empty prompt"


def test_metadata_beside_pictures(location) -> None:
    for split in ("train", "test"):
        for number in range(2):
            location.write(f"{split}/{number}.png", PICTURES[number])
        table = parquet_of(file_name=["0.png", "gone.png"], text=[f"a {split} fox", "x"])
        location.write(f"{split}/metadata.parquet", table)
    rows, rejected = location.list(name="hf")
    assert [row["prompt"] for row in rows] == ["a test fox", "a train fox"]
    assert [row.kind for row in rejected] == ["missing picture"] * 2


def test_pictures_in_a_named_folder(location) -> None:
    location.write("data/a.parquet", parquet_of(image=["a.png"], prompt=["a fox"]))
    location.write("pictures/a.png", PICTURES[0])
    (row,), _ = location.list("data/a.parquet", pictures=f"{location.root}/pictures")
    assert read_all([row]) == [PICTURES[0]]


@pytest.mark.parametrize("captions", ["first", "drawn"])
def test_rows_that_name_one_picture_give_one(location, captions: str) -> None:
    location.write("a.png", PICTURES[0])
    names, prompts = ["a.png"] * 5, prompts_of(5)
    location.write("metadata.parquet", parquet_of(2, file_name=names, text=prompts))
    (row,), (further,) = location.list(captions=captions)
    assert row["prompt"] in (prompts[:1] if captions == "first" else prompts)
    assert (further.kind, further.count) == ("further caption", 4)
