"""Lists of prompts: every row gets pictures or is rejected with a reason."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from img2prompt.config.generate import GenerateConfig
from img2prompt.data.sources.rows import Rejected
from img2prompt.data.text.normalise import prompt_id
from img2prompt.errors import UserError
from img2prompt.generate.prompts import check_prompts, choose_prompts, read_prompts


def rows_of(path: Path, column: str = "") -> list[tuple[str, object]]:
    """Return position and text of each row, or position and reason of a rejected one."""
    rows = read_prompts(str(path), column)
    return [(row.id, row.reason) if isinstance(row, Rejected) else row for row in rows]


def test_a_text_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    data = "\ufeffa red cat\r\n\r\nb\u2028c\n".encode()
    (tmp_path / "list.txt").write_bytes(data)
    (tmp_path / "list.txt.gz").write_bytes(gzip.compress(data))
    for name in ("list.txt", "list.txt.gz"):
        rows = [(where, str(text).strip()) for where, text in rows_of(tmp_path / name)]
        assert rows == [("line 1", "a red cat"), ("line 3", "b\u2028c")]


def test_tables_have_a_column_of_prompts(tmp_path: Path) -> None:
    csv, lines, parquet = (tmp_path / name for name in ("a.csv", "a.jsonl", "a.parquet"))
    csv.write_text('cosine,prompt\n0.1,"a cat, red"\n0.2,b,c\n')
    lines.write_text(json.dumps({"prompt": "a cat"}) + "\nno json\n" + json.dumps({"x": 1}) + "\n")
    pq.write_table(pa.table({"id": [1, 2], "words": ["a cat", None]}), parquet)
    assert rows_of(csv) == [
        ("prompts/line 2", "a cat, red"),
        ("prompts/line 3", "bad CSV: 3 cells; the header has 2"),
    ]
    first, second, third = rows_of(lines)
    assert first == ("prompts/line 1", "a cat")
    assert second[1].startswith("bad JSON: ")
    assert third[1] == "no prompt: none of ['prompt', 'caption', 'text'] is in ['x']"
    assert rows_of(parquet, "words") == [("row 1", "a cat"), ("row 2", None)]
    with pytest.raises(UserError, match=r"has the columns \['id', 'words'\]; needed: one of"):
        rows_of(parquet)
    with pytest.raises(UserError, match=r"with --prompt-column, or give a UTF-8"):
        rows_of(csv, "absent")


def test_a_table_of_one_column_is_split_at_tabs(tmp_path: Path) -> None:
    table = tmp_path / "a.tsv"
    table.write_text("prompt\na cat, red\na dog\n")
    assert rows_of(table) == [("prompts/line 2", "a cat, red"), ("prompts/line 3", "a dog")]
    table.write_text("prompt,id\na cat,1\n")
    assert rows_of(table) == [("prompts/line 2", "a cat")]


def test_unreadable_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read after row 0: "):
        rows_of(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="prompts is empty: give a file of prompts"):
        check_prompts("")
    with pytest.raises(UserError, match=r"absent\.txt cannot be read"):
        check_prompts(str(tmp_path / "absent.txt"))
    with pytest.raises(UserError, match=r"allowed: a file whose name ends with \.txt, "):
        check_prompts(str(tmp_path / "list.docx"))


def test_unfit_repeated_and_near_prompts_get_no_picture(
    config: GenerateConfig, tmp_path: Path
) -> None:
    lines = [
        b"a bowl of fresh ramen noodles with egg",
        b"a  bowl of fresh ramen noodles with egg ",
        b"a bowl of fresh ramen noodles with an egg",
        b"caf\xe9 at night",
        b"portrait of a secret agent",
        b"the surface of a frozen planet",
    ]
    path = tmp_path / "mixed.txt"
    path.write_bytes(b"\n".join(lines))
    (tmp_path / "blocked.txt").write_text("secret\n")
    changes = {"prompts": str(path), "clean.blocked_words": str(tmp_path / "blocked.txt")}
    prompts, rejected = choose_prompts(config.replace(changes))
    kept = [lines[0].decode(), lines[5].decode()]
    assert prompts["prompt"].to_pylist() == kept
    assert prompts["prompt_id"].to_pylist() == [prompt_id(prompt) for prompt in kept]
    reasons = {row.id: row.reason for row in rejected}
    assert reasons["line 2"] == "repeated prompt: line 1 has it too"
    assert reasons["line 3"].startswith("near duplicate: cosine 0.9")
    assert lines[0].decode() in reasons["line 3"]
    assert reasons["line 4"].startswith("undecodable prompt: byte 0xe9")
    assert reasons["line 5"] == "blocked word: 'secret' at word 4"
    changes["duplicate_cosine"] = 1.0
    prompts, _ = choose_prompts(config.replace(changes))
    assert prompts["prompt"].to_pylist() == [lines[0].decode(), lines[2].decode(), kept[1]]


def test_prompts_that_the_encoder_does_not_know_get_no_picture(
    config: GenerateConfig, tmp_path: Path
) -> None:
    lines = ["a red fox in deep snow", "สุนัขจิ้งจอกแดงในป่าหิมะ", "a red fox ቀይ"]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    changes = {"prompts": str(tmp_path / "list.txt"), "duplicate_cosine": 1.0}
    prompts, (rejected,) = choose_prompts(config.replace(changes))
    assert prompts["prompt"].to_pylist() == [lines[0], lines[2]]
    reason = "unknown to the encoder: 1 of 1 tokens; allowed: a share of 0.5"
    assert rejected == Rejected("line 2", reason)
    changes["clean.max_unknown"] = 0.1
    assert len(choose_prompts(config.replace(changes))[1]) == 2


def test_a_list_without_a_fit_prompt_is_refused(config: GenerateConfig, tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("!!!\n...\n")
    with pytest.raises(UserError, match=r"no prompt that is fit\n  line 1: too many symbols"):
        choose_prompts(config.replace({"prompts": str(tmp_path / "none.txt")}))
