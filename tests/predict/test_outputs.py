"""Files of predictions, written without predicting."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from img2prompt.config.predict import PredictConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.predict import outputs
from img2prompt.predict.prompts import KnownPrompts
from img2prompt.workspace import Stage

KNOWN = KnownPrompts(["a red cat", '=HYPERLINK("x")', "two birds"], np.eye(3, 384))
IDS = ["a.png", "b,c.png", "sub/a.jpg", "z.png"]
VECTORS = np.array([[9, 1, 0], [0, 2, 1], [0, 1, 3], [1, 1, 1]]) @ np.eye(3, 384)
CONFIDENCES = np.array([0.9, 0.6, 0.2, 0.4], np.float32)


def draft_of(folder: Path, config: PredictConfig) -> Draft:
    return Draft.open(str(folder / "out"), Stage.PREDICTIONS, config, {})


@pytest.fixture
def config() -> PredictConfig:
    return PredictConfig(nearest=2, abstain=0.5)


@pytest.fixture
def prompts(tmp_path: Path, config: PredictConfig, monkeypatch) -> pa.Table:
    monkeypatch.setattr(outputs, "PROMPTS_PART", 2)
    draft = draft_of(tmp_path, config)
    return outputs.find_prompts(config, KNOWN, IDS, VECTORS, CONFIDENCES, draft)


def test_uncertain_pictures_are_listed_as_unknown(prompts: pa.Table) -> None:
    rows = prompts.to_pylist()
    assert [(row["id"], row["kind"], row["rank"]) for row in rows] == [
        ("a.png", "nearest", 1),
        ("a.png", "nearest", 2),
        ("b,c.png", "nearest", 1),
        ("b,c.png", "nearest", 2),
        ("sub/a.jpg", "unknown", 1),
        ("z.png", "unknown", 1),
    ]
    assert rows[4]["prompt"] is None
    assert outputs.best_prompts(prompts).keys() == {"a.png", "b,c.png"}


def test_parts_that_are_written_are_not_made_again(tmp_path, config, prompts, monkeypatch) -> None:
    monkeypatch.setattr(outputs, "ReadablePrompts", None)
    draft = draft_of(tmp_path, config)
    again = outputs.find_prompts(config, KNOWN, IDS, VECTORS, CONFIDENCES, draft)
    assert again.equals(prompts)


def test_the_sheet_has_confidences_and_no_formula(tmp_path, config, prompts) -> None:
    draft = draft_of(tmp_path, config)
    outputs.write_prompts(draft, prompts, IDS, CONFIDENCES)
    with open(tmp_path / "out" / outputs.PROMPTS, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "picture": "a.png",
        "kind": "nearest",
        "rank": "1",
        "cosine": str(round(9 / 82**0.5, 4)),
        "prompt": "a red cat",
        "confidence": "0.9",
    }
    assert rows[2]["prompt"] == '\'=HYPERLINK("x")'
    assert (rows[4]["kind"], rows[4]["cosine"], rows[4]["prompt"]) == ("unknown", "", "")
    assert rows[4]["confidence"] == "0.2"


def test_numbers_below_zero_stay_numbers(tmp_path, config) -> None:
    draft = draft_of(tmp_path, config)
    table = outputs.find_prompts(config, KNOWN, IDS[:1], -VECTORS[:1], None, draft)
    outputs.write_prompts(draft, table, IDS[:1], np.array([-0.01234], np.float32))
    with open(tmp_path / "out" / outputs.PROMPTS, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["cosine"] == str(round(-1 / 82**0.5, 4))
    assert rows[1]["confidence"] == "-0.0123"


def test_without_confidences_every_picture_is_answered(tmp_path, config) -> None:
    draft = draft_of(tmp_path, config)
    table = outputs.find_prompts(config, KNOWN, IDS, VECTORS, None, draft)
    assert set(table["kind"].to_pylist()) == {"nearest"}
    outputs.write_prompts(draft, table, IDS, None)
    assert b"confidence" not in (tmp_path / "out" / outputs.PROMPTS).read_bytes()


def test_captions_in_one_file(tmp_path, config, prompts) -> None:
    draft = draft_of(tmp_path, config)
    outputs.write_texts(config.replace({"captions": "jsonl"}), draft, prompts)
    lines = (tmp_path / "out" / "captions.jsonl").read_text().splitlines()
    expected = [["a.png", "a red cat"], ["b,c.png", '=HYPERLINK("x")']]
    assert [[json.loads(line)[key] for key in ("picture", "prompt")] for line in lines] == expected
    outputs.write_texts(config.replace({"captions": "parquet"}), draft, prompts)
    table = draft.read_table("captions.parquet")
    assert table.column_names == ["picture", "prompt", "cosine"]
    assert table["prompt"].to_pylist() == [prompt for _, prompt in expected]
    outputs.write_texts(config, draft, prompts)


def test_captions_beside_the_pictures(tmp_path, config, prompts) -> None:
    draft = draft_of(tmp_path, config)
    (tmp_path / "sub").mkdir()
    uris = {name: str(tmp_path / name) for name in IDS}
    texts = outputs.text_uris(uris, draft)
    assert texts["sub/a.jpg"] == str(tmp_path / "sub" / "a.txt")
    outputs.write_beside(draft, prompts, texts)
    assert (tmp_path / "a.txt").read_text() == "a red cat\n"
    assert (tmp_path / "b,c.txt").read_text() == '=HYPERLINK("x")\n'
    assert not (tmp_path / "z.txt").exists()
    # A prediction that resumes writes the texts that are missing; another one refuses them.
    assert outputs.text_uris(uris, draft) == texts
    (tmp_path / "b,c.txt").unlink()
    (tmp_path / "z.txt").write_text("mine\n")
    outputs.write_beside(draft, prompts, texts)
    assert (tmp_path / "b,c.txt").exists()
    assert (tmp_path / "z.txt").read_text() == "mine\n"
    (tmp_path / "z.txt").unlink()
    other = Draft.open(str(tmp_path / "other"), Stage.PREDICTIONS, config, {})
    with pytest.raises(UserError, match=r"2 texts exist beside the pictures, such as .*a\.txt"):
        outputs.text_uris(uris, other)


def test_texts_of_others_are_never_replaced(tmp_path, config, prompts) -> None:
    draft = draft_of(tmp_path, config)
    texts = outputs.text_uris({name: str(tmp_path / name) for name in IDS[:2]}, draft)
    outputs.write_beside(draft, prompts, texts)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b,c.txt").write_text("mine\n")
    with pytest.raises(UserError, match=r"b,c\.txt exists with another text .*: move it away"):
        outputs.write_beside(draft, prompts, texts)
    assert (tmp_path / "b,c.txt").read_text() == "mine\n"
    assert not (tmp_path / "a.txt").exists()


def test_pictures_that_would_share_a_text_are_refused(tmp_path, config) -> None:
    uris = {name: f"/pictures/{name}" for name in ("a.png", "b.png", "a.jpg")}
    with pytest.raises(UserError, match=r"'a\.png' and 'a\.jpg' would both get /pictures/a\.txt"):
        outputs.text_uris(uris, draft_of(tmp_path, config))


def test_captions_need_texts() -> None:
    with pytest.raises(UserError, match="captions is 'beside'; allowed: none where --texts is"):
        PredictConfig(captions="beside", texts=())
