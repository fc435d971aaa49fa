import io
import json
import uuid
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_locations import SourceLocation, encoded, read_all

from img2prompt.data.sources import diffusiondb
from img2prompt.data.sources.rows import INDEX_SCHEMA

METADATA = pa.schema(
    [
        ("image_name", pa.string()),
        ("prompt", pa.string()),
        ("part_id", pa.uint16()),
        ("seed", pa.uint32()),
        ("step", pa.uint16()),
        ("cfg", pa.float32()),
        ("sampler", pa.uint8()),
        ("width", pa.uint16()),
        ("height", pa.uint16()),
        ("user_name", pa.string()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("image_nsfw", pa.float32()),
        ("prompt_nsfw", pa.float32()),
    ]
)


def pictures_of(number: int, form: str = "png", count: int = 3) -> dict[str, bytes]:
    names = [f"{uuid.UUID(int=number * 1000 + n)}.{form}" for n in range(count)]
    return {name: encoded(6 + number, 4 + n, form, seed=n) for n, name in enumerate(names)}


def prompts_of(number: int, pictures: dict[str, bytes]) -> bytes:
    settings = {"se": 3_000_000_000 + number, "c": 7.5, "st": 50, "sa": "k_lms"}
    prompts = {name: {"p": f"prompt {number} {n}", **settings} for n, name in enumerate(pictures)}
    return json.dumps(prompts).encode()


def zip_of(number: int, pictures: dict[str, bytes], prefix: str = "", method: int = 8) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, data in pictures.items():
            archive.writestr(prefix + name, data)
        archive.writestr(f"{prefix}part-{number:06d}.json", prompts_of(number, pictures))
    return sink.getvalue()


def metadata_of(parts: dict[int, dict[str, bytes]], **changes: object) -> bytes:
    rows = [
        {
            "image_name": name,
            "prompt": f"prompt {number} {n}",
            "part_id": number,
            "seed": 3_000_000_000 + number,
            "step": 50,
            "cfg": 7.5,
            "sampler": 8,
            "width": 6 + number,
            "height": 4 + n,
            "user_name": "deleted_account",
            "image_nsfw": 0.25 * n,
            "prompt_nsfw": 0.3,
            **changes,
        }
        for number, pictures in parts.items()
        for n, name in enumerate(pictures)
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows[::-1], schema=METADATA), sink, row_group_size=4)
    return sink.getvalue()


def write_parts(
    location: SourceLocation, parts: dict[int, dict[str, bytes]], under: str = "images/"
) -> None:
    """Odd parts as zips, even ones as folders."""
    for number, pictures in parts.items():
        if number % 2:
            location.write(f"{under}part-{number:06d}.zip", zip_of(number, pictures))
            continue
        for name, data in pictures.items():
            location.write(f"{under}part-{number:06d}/{name}", data)
        location.write(
            f"{under}part-{number:06d}/part-{number:06d}.json", prompts_of(number, pictures)
        )


PARTS = {number: pictures_of(number) for number in (1, 2, 3, 4)}
PICTURES = {name: data for pictures in PARTS.values() for name, data in pictures.items()}


@pytest.mark.parametrize("under", ["images/", ""])
def test_parts_without_metadata(location, under) -> None:
    write_parts(location, PARTS, under)
    rows, rejected = location.list(name="ddb")
    assert not rejected
    pa.Table.from_pylist(rows, schema=INDEX_SCHEMA).validate(full=True)
    assert [row["id"] for row in rows] == [f"ddb/{name}" for name in PICTURES]
    assert rows[4] == {
        "id": f"ddb/{[*PICTURES][4]}",
        "source": "ddb",
        "prompt": "prompt 2 1",
        "uri": f"{location.root}/{under}part-000002/{[*PICTURES][4]}",
        "member": "",
        "width": 8,
        "height": 5,
        "generator": "",
        "seed": 3_000_000_002,
        "steps": 50,
        "cfg": 7.5,
        "sampler": "k_lms",
        "nsfw": None,
    }
    assert read_all(rows) == [*PICTURES.values()]


def test_metadata_gives_scores_and_sizes(location, monkeypatch) -> None:
    monkeypatch.setattr(diffusiondb, "_ROWS_AT_ONCE", 5)
    write_parts(location, PARTS)
    location.write("metadata.parquet", metadata_of(PARTS))
    rows, rejected = location.list(name="ddb")
    assert not rejected
    assert [row["id"] for row in rows] == [f"ddb/{name}" for name in [*PICTURES][::-1]]
    assert [row["nsfw"] for row in rows[:3]] == [0.5, pytest.approx(0.3), pytest.approx(0.3)]
    assert {(row["sampler"], row["steps"], row["cfg"]) for row in rows} == {("k_lms", 50, 7.5)}
    assert [(row["width"], row["height"]) for row in rows[:3]] == [(10, 6), (10, 5), (10, 4)]
    assert read_all(rows) == [*PICTURES.values()][::-1]


def test_unknown_sizes_in_metadata_are_read_from_the_pictures(location) -> None:
    write_parts(location, PARTS)
    location.write("metadata.parquet", metadata_of(PARTS, width=0, height=None))
    rows, _ = location.list()
    assert [(row["width"], row["height"]) for row in rows[:3]] == [(10, 6), (10, 5), (10, 4)]


def test_both_subsets_in_one_folder(location) -> None:
    large = {1: pictures_of(1, "webp"), 10_001: pictures_of(11, "webp")}
    write_parts(location, {1: PARTS[1]})
    write_parts(location, {1: large[1]}, "diffusiondb-large-part-1/")
    write_parts(location, {10_001: large[10_001]}, "diffusiondb-large-part-2/")
    location.write("metadata.parquet", metadata_of({1: PARTS[1]}))
    location.write("metadata-large.parquet", metadata_of(large))
    rows, rejected = location.list(format="diffusiondb")
    assert not rejected
    expected = {**PARTS[1], **large[1], **large[10_001]}
    assert dict(zip([r["id"].split("/")[1] for r in rows], read_all(rows), strict=True)) == expected


def test_large_without_its_two_folders(location) -> None:
    write_parts(location, PARTS, "")
    location.write("metadata-large.parquet", metadata_of(PARTS))
    rows, rejected = location.list()
    assert (len(rows), rejected) == (12, [])
    assert all(row["nsfw"] is not None for row in rows)


def test_one_part_is_a_source_too(location) -> None:
    write_parts(location, PARTS)
    for path in ("images/part-000001.zip", "images/part-000002"):
        rows, rejected = location.list(path)
        assert (len(rows), rejected) == (3, [])


def test_a_missing_part_is_reported_for_each_row(location) -> None:
    write_parts(location, {number: PARTS[number] for number in (1, 4)})
    location.write("metadata.parquet", metadata_of(PARTS))
    rows, rejected = location.list(name="ddb")
    assert [row["id"].split("/")[1] for row in rows] == [*PARTS[1], *PARTS[4]][::-1]
    assert [row.id.split("/")[1] for row in rejected] == [*PARTS[2], *PARTS[3]][::-1]
    assert {row.kind for row in rejected} == {"missing part"}
    assert "part-000003 is not in" in rejected[0].reason


@pytest.mark.parametrize("metadata", [True, False])
def test_truncated_zips(location, metadata) -> None:
    write_parts(location, PARTS)
    data = zip_of(3, PARTS[3])
    location.write("images/part-000003.zip", data[: len(data) * 2 // 3])  # no central directory
    location.write("images/part-000001.zip", b"")
    if metadata:
        location.write("metadata.parquet", metadata_of(PARTS))
    rows, rejected = location.list()
    assert {row["id"].split("/")[1] for row in rows} == {*PARTS[2], *PARTS[4]}
    assert len(rejected) == (6 if metadata else 2)
    assert {row.kind for row in rejected} == {"unreadable part"}
    assert all("part-00000" in row.reason and "download it again" in row.reason for row in rejected)


def test_a_zip_within_a_folder_of_its_name_and_every_method(location) -> None:
    for number, method in enumerate([0, 8, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], start=1):
        data = zip_of(number, PARTS[number], f"part-{number:06d}/", method)
        location.write(f"part-{number:06d}.zip", data)
    rows, rejected = location.list()
    assert not rejected
    assert read_all(rows) == [*PICTURES.values()]


def test_locked_and_unknown_members(location) -> None:
    data = bytearray(zip_of(1, PARTS[1], method=0))
    first, second, third = PARTS[1]
    directory = [data.rindex(name.encode()) - 46 for name in (first, second)]
    data[directory[0] + 8] |= 1  # general flag: encrypted
    data[directory[1] + 10] = 93  # method: Zstandard
    location.write("part-000001.zip", bytes(data))
    rows, rejected = location.list(name="d")
    assert [row["id"] for row in rows] == [f"d/{third}"]
    assert [(row.id, row.kind) for row in rejected] == [
        (f"d/{first}", "locked picture"),
        (f"d/{second}", "unknown compression"),
    ]
    errors = read_all([{**rows[0], "member": name} for name in (first, second, third, "gone.png")])
    assert [type(error) for error in errors] == [ValueError, ValueError, bytes, FileNotFoundError]


def test_a_damaged_member_costs_only_itself(location) -> None:
    pictures = {f"{n}.png": encoded(200, 200, seed=n) for n in range(3)}
    data = bytearray(zip_of(1, pictures, method=0))
    data[data.index(pictures["1.png"]) + 100_000] ^= 0xFF  # far behind the header
    location.write("part-000001.zip", bytes(data))
    rows, rejected = location.list()
    assert (len(rows), rejected) == (3, [])
    first, error, third = read_all(rows)
    assert (first, third) == (pictures["0.png"], pictures["2.png"])
    assert isinstance(error, ValueError)
    assert "CRC" in str(error)


def test_differences_between_json_and_pictures(location) -> None:
    first, second, third = PARTS[2]
    settings = {
        first: {"p": "a cat"},
        second: {"p": "  "},
        "gone.png": {"p": "lost"},
        third: "text",
    }
    write_parts(location, {2: PARTS[2]}, "")
    location.write("part-000002/part-000002.json", json.dumps(settings).encode())
    location.write("part-000002/extra.png", encoded())
    write_parts(location, {4: PARTS[4]}, "")
    location.write("part-000004/part-000004.json", b"[]")
    rows, rejected = location.list(name="d")
    assert [(row["id"], row["seed"], row["sampler"]) for row in rows] == [(f"d/{first}", None, "")]
    assert [(row.id, row.kind) for row in rejected] == [
        (f"d/{second}", "empty prompt"),
        ("d/gone.png", "missing picture"),
        (f"d/{third}", "no prompt"),
        ("d/extra.png", "no prompt"),
        ("d/part-000004", "no prompt"),
    ]


def test_differences_between_metadata_and_parts(location) -> None:
    write_parts(location, PARTS)
    listed = {1: {**PARTS[1], "gone.png": b""}, 2: dict([*PARTS[2].items()][:1])}
    location.write("metadata.parquet", metadata_of(listed))
    rows, rejected = location.list(name="d")
    assert len(rows) == 4
    assert [(row.id, row.kind) for row in rejected] == [
        ("d/gone.png", "missing picture"),
        ("d/part-000002", "no prompt"),
        ("d/part-000003", "no prompt"),
        ("d/part-000004", "no prompt"),
    ]
    assert "contains 2 pictures more than" in rejected[1].reason


def test_two_parts_of_one_number(location) -> None:
    again = {"again.png": encoded()}
    write_parts(location, {1: PARTS[1]}, "a/")
    write_parts(location, {1: again}, "b/")
    rows, rejected = location.list(name="d")
    assert read_all(rows) == [*PARTS[1].values(), encoded()]
    assert not rejected
    location.write("metadata.parquet", metadata_of({1: PARTS[1]}))
    rows, (repeated,) = location.list(name="d")
    assert len(rows) == 3
    assert repeated.reason.endswith("b/part-000001.zip was not")


def test_rows_without_a_part(location) -> None:
    write_parts(location, {1: PARTS[1]})
    location.write("metadata.parquet", metadata_of({1: PARTS[1]}, part_id=None, image_name=None))
    _, rejected = location.list()
    assert [row.kind for row in rejected] == ["missing part"] * 3 + ["no prompt"]


@pytest.mark.parametrize("kind", ["cut", "columns", "damaged"])
def test_metadata_that_cannot_be_read(location, kind) -> None:
    write_parts(location, PARTS)
    data = bytearray(metadata_of(PARTS))
    if kind == "cut":
        data = data[:-20]
    elif kind == "damaged":
        data[4:40] = bytes(36)
    else:
        sink = io.BytesIO()
        pq.write_table(pa.table({"prompt": ["a"]}), sink)
        data = sink.getvalue()
    location.write("metadata.parquet", bytes(data))
    rows, rejected = location.list(name="d")
    assert len(rows) < 12
    assert rejected[0].id == "d/metadata.parquet"
    assert "metadata.parquet" in rejected[0].reason
