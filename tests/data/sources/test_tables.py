import csv
import gzip
import hashlib
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from source_locations import encoded, read_all

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources.catalogue import identity, list_rows, portions
from img2prompt.data.sources.detect import resolve
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.sources.rows import INDEX_SCHEMA, Rejected
from img2prompt.errors import UserError


def picture(path: Path, width: int = 5, height: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def rows_of(folder: Path, content: bytes, **changes: str) -> list:
    (folder / "list.csv").write_bytes(content)
    return list(list_rows(PictureSource(path=str(folder / "list.csv"), **changes)))


def test_real_pictures(shared_data) -> None:
    rows = list(list_rows(PictureSource(path=str(shared_data / "pictures.csv"), name="real")))
    with open(shared_data / "pictures.csv", newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))
    assert len(rows) == len(expected) == 847
    for row, line in zip(rows, expected, strict=True):
        assert (row["prompt"], row["source"]) == (line["prompt"], line["source"])
        assert (row["width"], row["height"]) == (int(line["width"]), int(line["height"]))
        assert (row["id"], row["seed"]) == (f"real/{line['file']}", None)
    pa.Table.from_pylist(rows, schema=INDEX_SCHEMA).validate(full=True)
    first = (shared_data / expected[0]["file"]).read_bytes()
    assert next(read_pictures([(rows[0]["uri"], rows[0]["member"])])) == first


def test_every_optional_column_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png", 7, 4)
    content = b"id,source,generator,seed,path,text\nx1,horde,sd2,42,a.png,a cat\n"
    rows = rows_of(
        tmp_path,
        content,
        pictures=str(tmp_path / "in"),
        file_column="path",
        prompt_column="text",
    )
    assert rows == [
        {
            "id": "pictures/x1",
            "source": "horde",
            "prompt": "a cat",
            "uri": str(tmp_path / "in" / "a.png"),
            "member": "",
            "width": 7,
            "height": 4,
            "generator": "sd2",
            "seed": 42,
            "steps": None,
            "cfg": None,
            "sampler": "",
            "nsfw": None,
        }
    ]


def test_empty_optional_cells_fall_back(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    content = b"file,prompt,id,source,seed\na.png,a cat,,,\n"
    (row,) = rows_of(tmp_path, content, name="mine")
    assert (row["id"], row["source"], row["seed"]) == ("mine/a.png", "mine", None)


@pytest.mark.parametrize(
    ("text", "seed"),
    [
        ("7", 7),
        (" -7 ", -7),
        ("12.0", 12),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), None),
        ("9" * 5000, None),
        ("1.5", None),
        ("random", None),
    ],
)
def test_seeds(tmp_path: Path, text: str, seed: int | None) -> None:
    picture(tmp_path / "a.png")
    (row,) = rows_of(tmp_path, f"file,prompt,seed\na.png,a cat,{text}\n".encode())
    assert row["seed"] == seed


def test_bom_quotes_newlines_and_blank_lines(tmp_path: Path) -> None:
    picture(tmp_path / "a, b.png")
    content = (
        b'\xef\xbb\xbffile,prompt\r\n"a, b.png","a ""red"" cat,\nsitting"\r\n\r\na, b.png,x,y\r\n'
    )
    row, bad = rows_of(tmp_path, content)
    assert row["prompt"] == 'a "red" cat,\nsitting'
    assert bad == Rejected("pictures/line 5", "bad CSV: 4 cells; the header has 2")


def test_compressed_csv(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "list.csv.gz").write_bytes(gzip.compress(b"file,prompt\na.png,a cat\n"))
    (row,) = list_rows(PictureSource(path=str(tmp_path / "list.csv.gz")))
    assert row["prompt"] == "a cat"


def test_a_uri_works_like_a_path(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "list.csv").write_bytes(b"file,prompt\na.png,a cat\n")
    (row,) = list_rows(PictureSource(path=f"file://{tmp_path}/list.csv"))
    assert row["uri"] == f"file://{tmp_path}/a.png"
    assert next(read_pictures([(row["uri"], "")])) == (tmp_path / "a.png").read_bytes()


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "list.csv").write_bytes(b"file,prompt\na.png,a cat\n")
    monkeypatch.chdir(tmp_path)
    (row,) = list_rows(PictureSource(path="list.csv"))
    assert row["uri"] == str(tmp_path / "a.png")


def test_bad_rows_are_rejected_and_the_rest_is_read(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png").read_bytes()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"hello, I am no picture")
    (tmp_path / "folder.png").mkdir()
    huge = bytearray(good)  # a PNG whose header, with a right checksum, claims 3600 megapixels
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(huge)
    lines = [
        b"file,prompt",
        b"good.png,a cat",
        b"absent.png,a cat",
        b"empty.png,a cat",
        b"text.png,a cat",
        b"folder.png,a cat",
        b"huge.png,a cat",
        b"good.png,  ",
        b"good.png,caf\xe9",
        b",a cat",
        b"good.png",
        b"bad\0name.png,a cat",
        b"last.png,last",
    ]
    picture(tmp_path / "last.png")
    first, *bad, last = rows_of(tmp_path, b"\n".join(lines))
    assert (first["prompt"], last["prompt"]) == ("a cat", "last")
    found = [(row.id, row.kind, row.reason) for row in bad]
    assert [(row_id, kind) for row_id, kind, _ in found] == [
        ("pictures/absent.png", "missing picture"),
        ("pictures/empty.png", "unreadable picture"),
        ("pictures/text.png", "unreadable picture"),
        ("pictures/folder.png", "unreadable picture"),
        ("pictures/huge.png", "picture size"),
        ("pictures/good.png", "empty prompt"),
        ("pictures/line 9", "undecodable prompt"),
        ("pictures/line 10", "no picture"),
        ("pictures/line 11", "bad CSV"),
        ("pictures/bad\0name.png", "unreadable picture"),
    ]
    reasons = [reason for *_, reason in found]
    for reason, value in zip(
        reasons,
        ["absent.png", "0 bytes", "68 65 6c 6c 6f", "folder.png", "60000 x 60000", "'  '"],
        strict=False,
    ):
        assert value in reason
    assert reasons[6] == "undecodable prompt: byte 0xe9 at character 4; allowed: UTF-8"


def test_a_broken_quote_costs_its_own_lines_only(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    content = b'file,prompt\na.png,"a "red" cat"\na.png,two\na.png,"never\nclosed\n'
    broken, row, open_quote = rows_of(tmp_path, content)
    assert (broken.id, broken.kind) == ("pictures/line 2", "bad CSV")
    assert row["prompt"] == "two"
    assert open_quote.reason.startswith("bad CSV: lines 4 to 5: ")


def test_many_rows_keep_their_order(tmp_path: Path) -> None:
    numbers, data = range(1200), encoded()
    for number in numbers:
        (tmp_path / f"{number}.png").write_bytes(data)
    content = "file,prompt,id\n" + "".join(f"{n}.png,cat {n},{n}\n" for n in numbers)
    assert [row["id"] for row in rows_of(tmp_path, content.encode())] == [
        f"pictures/{n}" for n in numbers
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"picture,prompt\na.png,a cat\n", "file,words\n".encode("utf-16"), b"file;words\n"],
)
def test_missing_columns_name_file_columns_and_option(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"list.csv has the columns .*file_column") as error:
        rows_of(tmp_path, content)
    str(error.value).encode()


def test_a_missing_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.csv does not exist"):
        list(list_rows(PictureSource(path=str(tmp_path / "absent.csv"))))


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x" * 3_000_000)
    expected = hashlib.sha256(b"x" * 3_000_000).hexdigest()[:16]
    assert identity(PictureSource(path=str(tmp_path / "a.csv"))) == expected
    with pytest.raises(UserError, match=r"absent.csv does not exist"):
        identity(PictureSource(path=str(tmp_path / "absent.csv")))


def test_json_lines(location) -> None:
    location.write("in/a.png", encoded(5, 3))
    location.write("in/b.png", encoded(5, 3))
    lines = [
        {"file_name": "in/a.png", "text": "a cat", "seed": 5, "steps": "20", "cfg": 7, "nsfw": 0.5},
        {"file_name": "in/b.png", "prompt": "a dog", "id": 7, "source": "old", "seed": True},
    ]
    bad = [b"{", b"[1]", b'{"text": "no file"}', b'{"file_name": 5, "text": "x"}', b"\xff"]
    bad += [b'{"file_name": "in/a.png"}', b'{"file_name": "in/a.png", "text": "\\ud800"}']
    text = b"\n".join([*(json.dumps(line).encode() for line in lines), b"", *bad])
    location.write("metadata.jsonl", text)
    (first, second), rejected = location.list(name="j")
    settings = ("id", "prompt", "seed", "steps", "cfg", "nsfw", "width")
    assert [first[key] for key in settings] == ["j/in/a.png", "a cat", 5, 20, 7.0, 0.5, 5]
    assert [second[key] for key in ("id", "source", "seed")] == ["j/7", "old", None]
    assert read_all([first, second]) == [encoded(5, 3)] * 2
    assert [(row.id, row.kind) for row in rejected] == [
        ("j/line 4", "bad JSON"),
        ("j/line 5", "bad JSON"),
        ("j/line 6", "no picture"),
        ("j/line 7", "no picture"),
        ("j/line 8", "bad JSON"),
        ("j/line 9", "no prompt"),
        ("j/line 10", "undecodable text"),
    ]
    (row,), _ = location.list("metadata.jsonl", prompt_column="prompt")
    assert row["prompt"] == "a dog"


def test_kaggle_layout(location) -> None:
    location.write("images/20057f34d.png", encoded(5, 3))
    location.write("images/227ef0887.jpg", encoded(6, 3, "jpg"))
    table = b"imgId,prompt\n20057f34d,hyper realistic photo\n227ef0887,ramen\nffffffff,gone\n"
    location.write("prompts.csv", table)
    location.write("sample_submission.csv", b"imgId_eId,val\n")
    rows, (rejected, left_out) = location.list(name="kaggle")
    assert left_out.reason.startswith("left out .csv: 1 file, such as sample_submission.csv; ")
    assert [(row["id"], row["prompt"], row["width"]) for row in rows] == [
        ("kaggle/20057f34d", "hyper realistic photo", 5),
        ("kaggle/227ef0887", "ramen", 6),
    ]
    assert (rejected.id, rejected.kind) == ("kaggle/ffffffff", "missing picture")
    assert "images/ffffffff.png does not exist" in rejected.reason
    assert read_all(rows) == [encoded(5, 3), encoded(6, 3, "jpg")]


def test_the_table_of_a_folder(location) -> None:
    location.write("a.png", encoded())
    location.write("metadata.csv", b"file_name,text\na.png,a cat\n")
    location.write("other.csv", b"x\n1\n")
    (row,), _ = location.list()
    assert row["prompt"] == "a cat"
    location.write("sub/one.csv", b"file,prompt\n")
    location.write("sub/two.csv", b"file,prompt\n")
    with pytest.raises(UserError, match=r"contains 2 files that end with .* \(one.csv, two.csv\)"):
        location.list("sub")


def test_every_setting_of_a_csv(location) -> None:
    location.write("a.png", encoded())
    location.write("b.png", encoded())
    header = b"file,prompt,steps,cfg,sampler,image_nsfw,prompt_nsfw\n"
    location.write(
        "a.csv", header + b"a.png,a cat,30,7.5,Euler a,0.25,0.5\nb.png,b,-,-,,high,nan\n"
    )
    rows, _ = location.list("a.csv")
    settings = [[row[key] for key in ("steps", "cfg", "sampler", "nsfw")] for row in rows]
    assert settings == [[30, 7.5, "Euler a", 0.5], [None, None, "", None]]


def test_a_broken_gzip_yields_the_rows_before(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(100_000).hex()
    lines = [f"{n}.png,cat {n},{n},{noise[n * 100 :][:100]}" for n in range(2000)]
    packed = gzip.compress("\n".join(["file,prompt,id,noise", *lines]).encode())
    (tmp_path / "list.csv.gz").write_bytes(packed[: len(packed) // 2])
    rows = list(list_rows(PictureSource(path=str(tmp_path / "list.csv.gz"))))
    listed = [row.id for row in rows[:-1]]
    assert 100 < len(listed) < 2000
    assert listed == [f"pictures/{n}" for n in range(len(listed))]
    assert {row.kind for row in rows[:-1]} == {"missing picture"}
    assert rows[-1].kind == "unreadable table"


TABLE = "file_name{0}text\n1.png{0}a red fox\n2.png{0}caf\u00e9\n"


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_and_separators(tmp_path: Path, separator: str, encoding: str) -> None:
    for number in (1, 2):
        picture(tmp_path / f"{number}.png")
    rows = rows_of(tmp_path, TABLE.format(separator).encode(encoding))
    assert [row["prompt"] for row in rows] == ["a red fox", "caf\u00e9"]


def test_json_lines_in_utf_16_and_a_tab_separated_table(location) -> None:
    location.write("a.png", encoded())
    line = json.dumps({"file_name": "a.png", "text": "caf\u00e9"}, ensure_ascii=False)
    location.write("a.jsonl", f"{line}\n".encode("utf-16"))
    location.write("in/a.png", encoded())
    location.write("in/b.tsv", b"file\tprompt\na.png\ta cat, sitting\n")
    assert location.list("a.jsonl")[0][0]["prompt"] == "caf\u00e9"
    assert location.list("in")[0][0]["prompt"] == "a cat, sitting"


def test_a_quoted_header_keeps_its_separator(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (row,) = rows_of(tmp_path, b'"file";"prompt"\n"a.png";"one; two, three"\n')
    assert row["prompt"] == "one; two, three"


def test_tables_in_the_folders_of_a_source(location) -> None:
    for split in ("train", "test"):
        location.write(f"{split}/1.png", encoded(5, 3))
        location.write(f"{split}/._metadata.csv", b"\0\5\x16\7")
        location.write(f"{split}/metadata.csv", f"file_name,text\n1.png,a {split} fox\n".encode())
    location.write("train/2.png", encoded(6, 3))
    location.write("README.md", b"")
    rows, rejected = location.list(name="hf")
    assert [(row["id"], row["source"], row["prompt"]) for row in rows] == [
        ("hf/test/1.png", "hf", "a test fox"),
        ("hf/train/1.png", "hf", "a train fox"),
    ]
    assert [(row.id, row.count) for row in rejected] == [
        ("hf/*system files", 2),
        ("hf/*.md", 1),
        ("hf/*.png", 1),
    ]
    source = PictureSource(path=location.root)
    before = identity(source)
    location.write("test/metadata.csv", b"file_name,text\n1.png,another\n")
    assert identity(source) != before


def test_a_table_is_seen_behind_many_pictures(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}')
        for number in range(3000):
            (tmp_path / split / f"{number}.png").touch()
    assert resolve(PictureSource(path=str(tmp_path))).format == "jsonl"


def test_pictures_in_one_folder_beside_the_table(location) -> None:
    location.write("Images/a.png", encoded(5, 3))
    location.write("other/b.png", encoded(5, 3))
    location.write("captions.txt", b"image,caption\na.png,a cat\nc.png,a hen\n")
    (row,), (missing,) = location.list("captions.txt", format="csv")
    assert row["uri"].endswith("/Images/a.png")
    assert missing.reason.startswith(f"missing picture: {location.root}/Images/c.png does not")


def test_a_missing_picture_names_the_option(location) -> None:
    location.write("a.csv", b"file,prompt\na.png,a cat\n")
    location.write("one/a.png", encoded())
    location.write("two/a.png", encoded())
    rows, (missing,) = location.list("a.csv")
    assert not rows  # two folders have it
    assert missing.reason.endswith("relative to the table, or to --sources.N.pictures")
    (row,), _ = location.list("a.csv", pictures=f"{location.root}/two")
    assert row["uri"].endswith("/two/a.png")


FLICKR = "".join(f"{name}.png,{name} caption {number}\n" for name in "ab" for number in range(5))


def test_one_of_five_captions_is_used_and_the_others_are_counted(location) -> None:
    for name in "ab":
        location.write(f"{name}.png", encoded())
    location.write("captions.csv", f"image,caption\n{FLICKR}".encode())
    rows, (further,) = location.list("captions.csv", name="flickr")
    assert [row["prompt"] for row in rows] == ["a caption 0", "b caption 0"]
    assert further.count == 8
    assert further.reason == (
        "further caption: 8 rows list a picture that another row lists, such as flickr/a.png; "
        "used: the first caption of each (--sources.N.captions)"
    )


def test_drawn_captions_follow_the_seed_and_cover_all(tmp_path: Path) -> None:
    lines = [f"{n}.png,{n} caption {k}" for k in range(5) for n in range(200)]
    (tmp_path / "list.csv").write_text("\n".join(["image,caption", *lines]))
    source = PictureSource(path=str(tmp_path / "list.csv"), captions="drawn")

    def drawn(source: PictureSource) -> list[str]:
        rows = [row for part in portions(resolve(source)) for row in part]
        return [row["prompt"] for row in rows if isinstance(row, dict)]

    prompts = drawn(source)
    assert sorted(int(prompt.split()[0]) for prompt in prompts) == list(range(200))
    numbers = [prompts.count(f"{n} caption {k}") for k in range(5) for n in range(200)]
    assert all(20 <= sum(numbers[k * 200 :][:200]) <= 60 for k in range(5))
    assert drawn(source) == prompts
    assert drawn(replace(source, captions_seed=1)) != prompts


def test_rows_after_an_unusable_caption_count(location) -> None:
    location.write("a.png", encoded())
    location.write("a.csv", b"file,prompt\na.png, \na.png,a cat\n")
    (row,), (rejected,) = location.list("a.csv")
    assert (row["prompt"], rejected.kind) == ("a cat", "empty prompt")


def test_drawn_captions_do_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    def drawn(folder: Path, path: str, **options: str) -> list[str]:
        folder.mkdir(exist_ok=True)
        lines = [f"p/{n}.png,{n} caption {k}" for k in range(5) for n in range(40)]
        (folder / "list.csv").write_text("\n".join(["image,caption", *lines]))
        config = PictureSource(path=str(folder / path), captions="drawn", **options)
        rows = [row for part in portions(resolve(config)) for row in part]
        return sorted(row["prompt"] for row in rows if isinstance(row, dict))

    expected = drawn(tmp_path / "one", "list.csv")
    assert len(expected) == 40
    assert drawn(tmp_path / "two", "list.csv") == expected
    assert drawn(tmp_path / "two", "", format="csv") == expected
    assert drawn(tmp_path / "two", "list.csv", pictures=str(tmp_path / "far")) == expected
