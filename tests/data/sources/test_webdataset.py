import io
import json
import tarfile

import pyarrow as pa
import pytest
from source_locations import encoded, read_all

from img2prompt.data.sources.rows import INDEX_SCHEMA


def tar_of(*members: tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


PICTURES = [encoded(5, 3), encoded(40, 30, "jpg"), encoded(8, 9, "webp")]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_of_each_kind(location, form) -> None:
    told = {"caption": "a dog", "seed": 7, "steps": 20, "cfg": 7.5, "sampler": "k_lms"}
    data = tar_of(
        ("a.png", PICTURES[0]),
        ("a.txt", b"a cat\n"),
        ("b.json", json.dumps(told).encode()),
        ("b.jpg", PICTURES[1]),
        ("deep.er/c.WEBP", PICTURES[2]),
        ("deep.er/c.txt", "a caf\u00e9".encode()),
        form=form,
    )
    location.write("00000.tar", data)
    location.write("00001.tar", tar_of(("a.png", PICTURES[0]), ("a.txt", b"another")))
    rows, rejected = location.list(name="web")
    assert not rejected
    pa.Table.from_pylist(rows, schema=INDEX_SCHEMA).validate(full=True)
    assert [(row["id"], row["prompt"], row["width"], row["height"]) for row in rows] == [
        ("web/00000.tar/a", "a cat", 5, 3),
        ("web/00000.tar/b", "a dog", 40, 30),
        ("web/00000.tar/deep.er/c", "a caf\u00e9", 8, 9),
        ("web/00001.tar/a", "another", 5, 3),
    ]
    settings = ("seed", "steps", "cfg", "sampler", "nsfw")
    assert [rows[1][key] for key in settings] == [7, 20, 7.5, "k_lms", None]
    assert read_all(rows) == [*PICTURES, PICTURES[0]]
    for row, picture in zip(rows, PICTURES, strict=False):  # a picture is one ranged read
        offset, size = map(int, row["member"].split("+"))
        assert data[offset : offset + size] == picture


def test_a_named_column_is_taken_from_the_json(location) -> None:
    both = json.dumps({"prompt": "short", "long": "a long prompt"}).encode()
    samples = [("a.png", PICTURES[0]), ("a.txt", b"text"), ("a.json", both)]
    path = location.write("one.tar", tar_of(*samples))
    assert location.list("one.tar")[0][0]["prompt"] == "text"
    (row,), _ = location.list("one.tar", prompt_column="long")
    assert (row["prompt"], row["uri"]) == ("a long prompt", path)
    _, (rejected,) = location.list("one.tar", prompt_column="caption")
    assert rejected.reason.startswith(
        "no prompt: the sample contains ['.json', '.png', '.txt'], its"
    )
    assert "needed: caption" in rejected.reason


def test_bad_samples_cost_only_themselves(location) -> None:
    name_in_latin_1 = b"caf\xe9".decode("utf-8", "surrogateescape")
    samples = [
        ("text.txt", b"no picture here"),
        ("mute.png", PICTURES[0]),
        ("blank.png", PICTURES[0]),
        ("blank.txt", b" \n"),
        ("bytes.png", PICTURES[0]),
        ("bytes.txt", b"caf\xe9"),
        ("broken.png", b"no png at all"),
        ("broken.txt", b"a cat"),
        ("void.png", b""),
        ("void.txt", b"a cat"),
        ("json.png", PICTURES[0]),
        ("json.json", b"{"),
        ("list.png", PICTURES[0]),
        ("list.json", b"[1]"),
        ("half.png", PICTURES[0]),
        ("half.json", b'{"prompt": "\\ud800"}'),
        ("number.png", PICTURES[0]),
        ("number.json", b'{"prompt": 5}'),
        (name_in_latin_1 + ".png", PICTURES[0]),
        (name_in_latin_1 + ".txt", b"strange name"),
        ("good.png", PICTURES[0]),
        ("good.txt", b"a cat"),
    ]
    location.write("a.tar", tar_of(*samples))
    rows, rejected = location.list(name="s")
    assert [row["id"] for row in rows] == ["s/a.tar/caf\\udce9", "s/a.tar/good"]
    assert [(row.id.removeprefix("s/a.tar/"), row.kind) for row in rejected] == [
        ("text", "no picture"),
        ("mute", "no prompt"),
        ("blank", "empty prompt"),
        ("bytes", "undecodable prompt"),
        ("broken", "unreadable picture"),
        ("void", "unreadable picture"),
        ("json", "bad JSON"),
        ("list", "bad JSON"),
        ("half", "undecodable prompt"),
        ("number", "no text"),
    ]
    assert read_all(rows) == [PICTURES[0]] * 2


@pytest.mark.parametrize("cut", [1024, 10_000])
def test_a_truncated_tar_yields_its_complete_samples(location, cut) -> None:
    samples = [
        (f"{n}.{end}", d) for n in range(9) for end, d in (("jpg", PICTURES[1]), ("txt", b"x"))
    ]
    data = tar_of(*samples)
    whole = len(samples) // 2 * (512 + 512 + 512 + -(-len(PICTURES[1]) // 512) * 512)
    location.write("a.tar", data[: whole - cut])
    location.write("b.tar", tar_of(("a.jpg", PICTURES[1]), ("a.txt", b"whole")))
    rows, rejected = location.list(name="s")
    kept = {row["id"] for row in rows}
    assert "s/b.tar/a" in kept
    assert 2 <= len(kept) < 10
    assert all(data == PICTURES[1] for data in read_all(rows))
    assert rejected[-1].id == "s/a.tar"
    assert rejected[-1].reason.startswith("damaged tar: ")
    assert "copy or download it again" in rejected[-1].reason


def test_tars_that_end_or_begin_badly(location) -> None:
    good = tar_of(("a.png", PICTURES[0]), ("a.txt", b"a cat"))
    end = good.rindex(b"a cat") + 512
    location.write("cut.tar", good[:end])  # between two members: tarfile itself says nothing
    location.write("header.tar", good[:end] + b"\xff" * 512 + good[end:])
    location.write("empty.tar", b"")
    location.write("text.tar", b"hello" * 500)
    location.write("packed.tar.gz", b"")
    rows, rejected = location.list(name="s")
    assert [row["id"] for row in rows] == ["s/cut.tar/a", "s/header.tar/a"]
    assert [(row.id, row.kind) for row in rejected] == [
        ("s/cut.tar", "damaged tar"),
        ("s/empty.tar", "damaged tar"),
        ("s/header.tar", "damaged tar"),
        ("s/packed.tar.gz", "compressed tar"),
        ("s/text.tar", "damaged tar"),
    ]


def test_a_tar_that_changed_after_it_was_listed(location) -> None:
    data = tar_of(("a.txt", b"a cat"), ("a.jpg", PICTURES[1]))
    location.write("a.tar", data)
    rows, _ = location.list()
    location.write("a.tar", data[: data.index(PICTURES[1]) + 100])
    (error,) = read_all(rows)
    assert isinstance(error, ValueError)
    assert "within this picture" in str(error)


def test_members_in_any_order_and_files_of_macos(location) -> None:
    told = json.dumps({"seed": 7}).encode()
    by_kind = [("a.png", PICTURES[0]), ("b.jpg", PICTURES[1]), ("a.json", told), ("b.json", told)]
    by_kind += [("a.txt", b"a cat"), ("b.txt", b"a dog")]
    location.write("kinds.tar", tar_of(*by_kind))
    mac = [("._a.png", b"\0\5\x16\7"), ("a.png", PICTURES[0]), ("._a.txt", b"x"), ("a.txt", b"cat")]
    location.write("mac.tar", tar_of(*mac, ("__MACOSX/a.txt", b"x"), (".DS_Store", b"x")))
    rows, rejected = location.list(name="s")
    assert [(row["id"], row["prompt"], row["seed"]) for row in rows] == [
        ("s/kinds.tar/a", "a cat", 7),
        ("s/kinds.tar/b", "a dog", 7),
        ("s/mac.tar/a", "cat", None),
    ]
    assert read_all(rows) == [PICTURES[0], PICTURES[1], PICTURES[0]]
    assert [(row.kind, row.count) for row in rejected] == [("left out system files", 4)]


def test_keys_with_dots(location) -> None:
    both = [
        (f"fox_v1.{n}.{end}", data)
        for n in (5, 6)
        for end, data in (("png", PICTURES[0]), ("txt", b"fox %d" % n))
    ]
    location.write("dots.tar", tar_of(*both))
    sides = [("a.left.png", PICTURES[0]), ("a.right.png", PICTURES[0]), ("a.json", b"{}")]
    location.write("sides.tar", tar_of(*sides))
    rows, (rejected,) = location.list(name="s")
    assert [(row["id"], row["prompt"]) for row in rows] == [
        ("s/dots.tar/fox_v1.5", "fox 5"),
        ("s/dots.tar/fox_v1.6", "fox 6"),
    ]
    assert rejected.reason == (
        "no picture: the sample contains ['.json', '.left.png', '.right.png']; an ending begins at "
        "the first dot of a file's name (WebDataset's rule)"
    )


def test_members_of_no_sample_are_counted(location) -> None:
    sample = [("a.png", PICTURES[0]), ("a.jpg", PICTURES[1]), ("a.txt", b"a cat"), ("a.cls", b"1")]
    sample += [("b.png", PICTURES[0]), ("b.txt", b"a dog"), ("a.json", b'{"seed": 7}')]
    data = tar_of(*sample)
    link = tarfile.TarInfo("c.png")
    link.type, link.linkname = tarfile.LNKTYPE, "a.png"
    location.write("a.tar", link.tobuf() + data)
    location.write("notes.md", b"")
    rows, rejected = location.list(name="s")
    assert [(row["id"], row["width"]) for row in rows] == [("s/a.tar/a", 5), ("s/a.tar/b", 5)]
    assert [(row.id, row.count) for row in rejected] == [
        ("s/a.tar/*links", 1),
        ("s/a.tar/*.jpg", 1),
        ("s/a.tar/*.cls", 1),
        ("s/a.tar/*.json", 1),
        ("s/*.md", 1),
    ]
