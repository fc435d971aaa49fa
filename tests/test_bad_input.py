"""Bad input end to end: every row of a CSV is used, rejected with a reason, or a duplicate."""

import os
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from img2prompt.config.prepare import GroupConfig, PrepareConfig, ShardConfig
from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.reader import read_pictures
from img2prompt.errors import UserError
from img2prompt.prepare import clean
from img2prompt.prepare import run as prepare
from img2prompt.prepare.prepared_data import PreparedData

ROOT = Path(__file__).parents[1]
LONG = "a small boat on the sea " * 60 + "under a green moon"
NOODLES = "a bowl of fresh ramen noodles with egg"

ROWS: list[tuple[bytes, str]] = [
    (b"noodles,noodles.png," + NOODLES.encode(), "used"),
    (b"noodles again,wide.jpg," + NOODLES.encode(), "used"),
    (b"noodles alike,alike.png,a bowl of fresh ramen noodles with an egg", "near duplicate"),
    (b"long,long.png," + LONG.encode(), "used"),
    (b'quoted,quoted.png,"a ""giant"" snail,\r\nmade of  glass"', "used"),
    (b"missing,absent.png,a lighthouse on a cliff at dawn", "missing picture"),
    (b"vanishing,vanishing.png,an empty train station in winter", "missing picture"),
    (b"text,text.png,portrait of an old sailor", "unreadable picture"),
    (b"zero,zero.png,a stack of pancakes with syrup", "unreadable picture"),
    (b"half,half.png,a knitted dinosaur on a desk", "unreadable picture"),
    (b"folder,folder.png,the surface of a frozen planet", "unreadable picture"),
    (b"copy,copy.png,a copper kettle on a stove", "repeated picture"),
    (b"lying,lying.png,a crowded market in the rain", "picture size"),
    (b"lying more,lying-more.png,a spaceship above a desert", "picture size"),
    (b"tiny,tiny.png,three violins in a field of wheat", "picture size"),
    (b"no prompt,noodles.png,", "empty prompt"),
    (b"blank prompt,noodles.png,  \t", "empty prompt"),
    (b"invisible,invisible.png,\x01\x02", "empty prompt"),
    (b"replaced,replaced.png,caf\xef\xbf\xbd at night", "undecodable prompt"),
    (b"many words,many.png," + b"word " * 501, "too many words"),
    (b"noodles,second.png,a second row with the id of another", "repeated id"),
]
"""CSV records, each with its expected result."""

FURTHER = [
    b"same picture,noodles.png,a  bowl of fresh ramen noodles with egg",
    b"other words,noodles.png,a plate of spaghetti",
]
"""Records with further captions of a picture; they share one rejected row."""
FURTHER_ID = "mine/*further captions"

NAMELESS = [
    (b"latin-1,noodles.png,caf\xe9 at night", "undecodable prompt"),
    (b"short,noodles.png", "bad CSV"),
    (b"wide,noodles.png,a cat,a dog", "bad CSV"),
    (b"no file,,a cat without a picture", "no picture"),
]
"""Records without a usable id; theirs is `<source>/line <number>`."""


def png_that_claims(width: int, height: int) -> bytes:
    parts = [
        b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0",
        b"IDAT" + zlib.compress(b"\0" * 100),
        b"IEND",
    ]
    chunks = (
        (len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")
        for part in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_pictures(folder: Path) -> None:
    unused = ("invisible", "replaced", "many", "second")
    for name in ("noodles", "alike", "long", "quoted", "vanishing", "half", *unused):
        noise = Image.effect_noise((64, 48), 80).convert("RGB")
        noise.save(folder / f"{name}.png")
    (folder / "copy.png").write_bytes((folder / "quoted.png").read_bytes())
    noise.resize((200, 20)).convert("CMYK").save(folder / "wide.jpg")
    Image.new("RGB", (15, 400)).save(folder / "tiny.png")
    (folder / "half.png").write_bytes((folder / "half.png").read_bytes()[:2000])
    (folder / "text.png").write_text("this is no picture")
    (folder / "zero.png").touch()
    (folder / "folder.png").mkdir()
    (folder / "lying.png").write_bytes(png_that_claims(20_000, 10_000))
    (folder / "lying-more.png").write_bytes(png_that_claims(50_000, 40_000))


def write_scenes(folder: Path) -> list[tuple[bytes, str]]:
    """Write enough good rows for three splits; any of them may be near duplicates."""
    rows = []
    for row in list_rows(SceneSource(prompts=60, pictures_per_prompt=1, size=32)):
        assert isinstance(row, dict)
        name = row["id"].replace("/", "-")
        (folder / name).write_bytes(next(read_pictures([(row["uri"], row["member"])])))
        rows.append((f'{row["id"]},{name},"{row["prompt"]}"'.encode(), "good"))
    return rows


@dataclass(frozen=True)
class Case:
    config: PrepareConfig
    out: str
    made: PreparedData
    expected: dict[str, list[str]]
    """Expected results of the rows of each id."""
    rows: int


@pytest.fixture(scope="module")
def case(cluster, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A CSV of good and bad rows, prepared; one picture vanishes after it was listed."""
    folder = tmp_path_factory.mktemp("bad")
    write_pictures(folder)
    further = [(record, "further caption") for record in FURTHER]
    records = [*ROWS, *further, *write_scenes(folder)]
    lines = [b"id,file,prompt", *(record for record, _ in [*records, *NAMELESS])]
    (folder / "rows.csv").write_bytes(b"\r\n".join(lines) + b"\r\n\r\n")
    expected: dict[str, list[str]] = {}
    for record, fate in records:
        if record in FURTHER:
            expected[FURTHER_ID] = [fate]
            continue
        expected.setdefault(f"mine/{record.partition(b',')[0].decode()}", []).append(fate)
    breaks = sum(record.count(b"\n") for record, _ in records)
    first = 2 + len(records) + breaks
    for number, (_, fate) in enumerate(NAMELESS, start=first):
        expected[f"mine/line {number}"] = [fate]
    config = PrepareConfig(
        name="bad",
        sources=(PictureSource(path=str(folder / "rows.csv"), name="mine"),),
        group=GroupConfig(val_fraction=0.2, test_fraction=0.2),
        shard=ShardConfig(size=32, rows_per_shard=16, rows_per_group=4),
    )
    real = clean.run

    def clean_after_a_loss(*arguments):
        (folder / "vanishing.png").unlink(missing_ok=True)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "run", clean_after_a_loss)
        made = prepare.run(config, str(folder / "out"))
    return Case(config, str(folder / "out"), made, expected, len(records) + len(NAMELESS))


def rejected_rows(made: PreparedData) -> list[dict]:
    tables = [
        made.index.read_tables("rejected"),
        made.clean.read_tables("rejected"),
        made.shards.read_tables("rejected/"),
    ]
    return [row for table in tables for row in table.to_pylist()]


def used_ids(made: PreparedData) -> list[str]:
    splits = ("train/", "val/", "test/")
    return [n for split in splits for n in made.shards.read_tables(split)["id"].to_pylist()]


def dropped_ids(made: PreparedData) -> list[str]:
    groups = made.groups.read_tables("rows").to_pylist()
    kept = {row["prompt_id"] for row in groups if row["kept"]}
    rows = made.clean.read_tables("rows").to_pylist()
    return [row["id"] for row in rows if row["prompt_id"] not in kept]


def marked(test):
    """Mark a test that uses `case`, which takes minutes on a busy machine."""
    return pytest.mark.timeout(900)(pytest.mark.ray(pytest.mark.slow(test)))


@marked
def test_every_row_is_accounted_for(case) -> None:
    counts = {name: getattr(case.made, name).counts for name in ("index", "clean", "shards")}
    used = sum(counts["shards"][split] for split in ("train", "val", "test"))
    rejected = sum(sum(found["rejected"].values()) for found in counts.values())
    pictures = case.made.groups.counts["pictures_by_split"]
    dropped = case.made.targets.counts["pictures"] - sum(pictures.values())
    assert used + rejected + dropped == case.rows == len(ROWS) + len(FURTHER) + len(NAMELESS) + 60
    assert dropped >= 1
    ids = used_ids(case.made) + dropped_ids(case.made)
    ids += [row["id"] for row in rejected_rows(case.made)]
    assert Counter(ids) == {name: len(fates) for name, fates in case.expected.items()}


@marked
def test_each_row_has_the_expected_result(case) -> None:
    used, dropped = set(used_ids(case.made)), set(dropped_ids(case.made))
    kinds: dict[str, list[str]] = {}
    for row in rejected_rows(case.made):
        kinds.setdefault(row["id"], []).append(row["reason"].partition(": ")[0])
    for name, fates in case.expected.items():
        found = kinds.get(name, [])
        found += ["used"] * (name in used) + ["near duplicate"] * (name in dropped)
        if fates == ["good"]:
            assert found in (["used"], ["near duplicate"]), name
        else:
            assert sorted(found) == sorted(fates), name


@marked
def test_reasons_name_the_value_and_what_is_allowed(case) -> None:
    reasons: dict[str, str] = {
        row["id"].removeprefix("mine/"): row["reason"] for row in rejected_rows(case.made)
    }
    folder = str(Path(case.out).parent)
    for name, told in {
        "missing": f"missing picture: {folder}/absent.png does not exist",
        "vanishing": f"missing picture: {folder}/vanishing.png does not exist",
        "zero": f"unreadable picture: {folder}/zero.png: the file has 0 bytes",
        "half": f"unreadable picture: {folder}/half.png: damaged PNG of 2000 bytes",
        "text": "it starts with 74 68 69 73 20 69 73 20); allowed: PNG, JPEG",
        "lying": "picture is 20000 x 10000 = 200 megapixels; allowed: at most 100",
        "lying more": "picture is 50000 x 40000 = 2000 megapixels; allowed: at most 1000",
        "tiny": "picture is 15 x 400 pixels; allowed: 16 or more on the shorter side",
        "no prompt": "empty prompt: ''; allowed: visible text",
        "replaced": "U+FFFD at character 4; allowed: valid UTF-8",
        "many words": "too many words: 501; allowed: 1 to 500",
        "copy": "repeated picture: it has the bytes of mine/quoted",
        "*further captions": "further caption: 2 rows list a picture that another row lists",
        "noodles": "repeated id: 'mine/noodles'; allowed: one row an id",
        "line 86": "undecodable prompt: byte 0xe9 at character 4; allowed: UTF-8",
        "line 87": "bad CSV: 2 cells; the header has 3",
        "line 89": "no picture: column 'file' is empty",
    }.items():
        assert told in reasons[name]
    assert all(": " in reason for reason in reasons.values())


@marked
def test_counts_and_table_have_the_kinds_of_rejected_rows(case) -> None:
    kinds = Counter(row["reason"].partition(":")[0] for row in rejected_rows(case.made))
    kinds["further caption"] = len(FURTHER)
    told = Counter()
    for made in (case.made.index, case.made.clean, case.made.shards):
        told.update(made.counts["rejected"])
    assert told == kinds
    shards = {"missing picture": 1, "unreadable picture": 1, "repeated picture": 1}
    assert case.made.shards.counts["rejected"] == shards
    table = {row[0]: row[1:] for row in prepare.summary(case.made)}
    assert table["pictures left out"][0] == 3
    assert sorted(str(table["pictures left out"][1]).split(", ")) == [
        "1 missing picture",
        "1 repeated picture",
        "1 unreadable picture",
    ]
    assert "2 further caption" in str(table["pictures listed"][1])
    pictures = len(dropped_ids(case.made))
    assert f"near duplicates dropped, with {pictures} pictures" in str(table["prompts kept"][1])


@marked
def test_a_prompt_longer_than_the_encoder_reads_is_kept_and_marked(case) -> None:
    rows = case.made.targets.read_tables("rows").to_pylist()
    assert [row["prompt"] for row in rows if row["cut"]] == [LONG]
    assert case.made.targets.counts["cut"] == 1
    assert "mine/long" in used_ids(case.made)


@marked
def test_a_second_run_finds_everything_finished(case) -> None:
    assert prepare.run(case.config, case.out) == case.made


def csv_config(folder: Path, text: str, **columns: str) -> PrepareConfig:
    (folder / "rows.csv").write_text(text)
    source = PictureSource(path=str(folder / "rows.csv"), **columns)
    return PrepareConfig(name="bad", sources=(source,))


@marked
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"rows\.csv has the columns \[\]; needed: one of \['file', .*--sources\.N\.file"),
        ("file;words\na.png;cat\n", r"columns \['file', 'words'\]; needed.*UTF-8 or UTF-16 file"),
        ("file,words\na.png,cat\n", r"columns \['file', 'words'\]; needed.*prompt_column"),
        ("file,prompt\n", r"no row of \['pictures'\] is usable"),
        ("file,prompt\na.png,cat\n", r"no row.*'missing picture': 1.*a\.png does not exist"),
    ],
)
def test_csv_files_that_cannot_be_used(cluster, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"(?s){message}"):
        prepare.run(csv_config(tmp_path, text), str(tmp_path / "out"))


def test_a_missing_csv_is_an_error(tmp_path: Path) -> None:
    config = PrepareConfig(name="bad", sources=(PictureSource(path=str(tmp_path / "absent.csv")),))
    with pytest.raises(UserError, match=r"absent\.csv does not exist: give the file"):
        prepare.run(config, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@marked
def test_a_split_without_readable_pictures_is_an_error_with_reasons(
    cluster, tmp_path: Path
) -> None:
    Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / "good.png")
    half = (tmp_path / "good.png").read_bytes()[:1000]
    prompts = ["a red cat", "an old castle at night", "four trumpets", "the moon over Paris"]
    for number in range(len(prompts)):
        (tmp_path / f"{number}.png").write_bytes(half)
    rows = "".join(f"{number}.png,{prompt}\n" for number, prompt in enumerate(prompts))
    config = csv_config(tmp_path, "file,prompt\n" + rows)
    with pytest.raises(
        UserError,
        match=r"a split has no picture: .*'unreadable picture': 4.*out/shards/rejected",
    ):
        prepare.run(config, str(tmp_path / "out"))


def run_job(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, "jobs/prepare.py", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_reported(done: subprocess.CompletedProcess, *words: str) -> None:
    """Check for exit status 2, no traceback, and these words on standard error."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    told = " ".join(done.stderr.replace("│", " ").split())
    for word in words:
        assert word in told, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["demo", "--group.val-fraction", "2"],
            ["val_fraction + test_fraction is 2.1; allowed: below 0.9"],
        ),
        (["--shard.encoding", "gif"], ["--shard.encoding", "gif", "('png', 'jpeg')"]),
        (["photos"], ["'photos' is no preset", "pictures-small: Your pictures"]),
    ],
)
def test_wrong_options_on_the_command_line(arguments: list[str], words: list[str]) -> None:
    assert_reported(run_job(*arguments), *words)


@marked
def test_a_csv_without_columns_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("picture,words\na.png,a cat\n")
    csv = str(tmp_path / "rows.csv")
    done = run_job("pictures", "--sources.0.path", csv, "--out", str(tmp_path / "out"))
    columns = "has the columns ['picture', 'words']; needed: one of ['file', 'file_name', "
    assert_reported(done, f"error: {csv} {columns}", "--sources.N.prompt_column")


@marked
def test_a_folder_of_another_run_on_the_command_line(case) -> None:
    done = run_job(
        "--config", f"{case.out}/prepare.json", "--clean.min-words", "3", "--out", case.out
    )
    assert_reported(
        done,
        f"error: {case.out}/clean holds another run",
        "config.min_words: saved 1, requested 3",
        "Give another --out or --name, or delete that folder",
    )
