import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from img2prompt.artifact import Artifact, Draft
from img2prompt.config import GroupConfig, TargetsConfig
from img2prompt.data.prompts import normalise, prompt_id
from img2prompt.data.vectors import matrix, vector_column
from img2prompt.errors import UserError
from img2prompt.model.text import PromptEncoder
from img2prompt.stages import group, targets


def targets_of(folder: Path, prompts: list[str], vectors: np.ndarray) -> Artifact:
    draft = Draft.open(str(folder / "targets"), "targets", TargetsConfig(), {})
    for number, rows in enumerate(np.array_split(np.arange(len(prompts)), 2)):
        texts = [prompts[row] for row in rows]
        columns = [
            [prompt_id(text) for text in texts],
            texts,
            pa.array(rows % 3 + 1, pa.int32()),
            vector_column(vectors[rows]),
            [False] * len(rows),
        ]
        table = pa.table(columns, schema=targets.SCHEMA)
        draft.write_table(f"rows-{number:05d}.parquet", table)
    return draft.publish()


@pytest.fixture(scope="module")
def real_targets(tmp_path_factory, shared_data) -> Artifact:
    lines = (shared_data / "prompts" / "real_prompts.txt").read_text().splitlines()
    prompts = list(dict.fromkeys(filter(None, map(normalise, lines))))[:500]
    return targets_of(tmp_path_factory.mktemp("real"), prompts, PromptEncoder().encode(prompts))


@pytest.fixture(scope="module")
def real_groups(tmp_path_factory, real_targets) -> Artifact:
    return group.run(GroupConfig(), real_targets, str(tmp_path_factory.mktemp("groups") / "out"))


def test_kept_and_dropped_rows_agree(real_targets, real_groups) -> None:
    table = real_groups.read_tables("rows")
    assert table.schema.equals(group.SCHEMA)
    prompts = real_targets.read_tables("rows")
    assert table["prompt_id"].equals(prompts["prompt_id"])
    vectors = matrix(prompts["target"]).astype(np.float64)
    rows = table.to_pylist()
    number = {row["prompt_id"]: n for n, row in enumerate(rows)}
    for n, row in enumerate(rows):
        keeper = rows[number[row["keeper"]]]
        assert keeper["kept"]
        assert (keeper["group"], keeper["split"]) == (row["group"], row["split"])
        cosine = vectors[n] @ vectors[number[row["keeper"]]]
        assert row["score"] == pytest.approx(1.0 if row["kept"] else cosine, abs=1e-12)
        assert row["kept"] or (row["score"] >= 0.85 and number[row["keeper"]] < n)
    kept = np.array(table["kept"].to_pylist())
    among = vectors[kept] @ vectors[kept].T - 2 * np.eye(kept.sum())
    assert among.max() < 0.85
    assert 250 < kept.sum() < 500


def test_no_similar_prompts_straddle_the_split(real_targets, real_groups) -> None:
    table = real_groups.read_tables("rows")
    kept = np.array(table["kept"].to_pylist())
    split, groups = (np.array(table[name].to_pylist())[kept] for name in ("split", "group"))
    vectors = matrix(real_targets.read_tables("rows")["target"])[kept].astype(np.float64)
    for label in np.unique(groups):
        assert len(set(split[groups == label])) == 1
    cosine = vectors @ vectors.T
    leaks = json.loads(Path(real_groups.path(group.LEAKS)).read_text())
    for name in ("val", "test"):
        across = cosine[np.ix_(split == name, split == "train")]
        assert across.max() < 0.80
        report = leaks[name]
        assert report["largest_cosine"] == pytest.approx(across.max(), abs=1e-12)
        assert real_groups.counts[f"train_to_{name}"] == report["largest_cosine"]
        assert sum(report["histogram"]["counts"]) == (split == name).sum() == report["held_out"]


def test_counts_add_up(real_targets, real_groups) -> None:
    counts = real_groups.counts
    table = real_groups.read_tables("rows")
    assert counts["prompts"] == table.num_rows == 500
    assert counts["kept"] + counts["dropped"] == 500
    assert sum(counts["kept_by_split"].values()) == counts["kept"]
    assert counts["groups"] == len(set(table["group"].to_pylist()))
    kept = np.array(table["kept"].to_pylist())
    pictures = real_targets.read_tables("rows")["pictures"].to_numpy()[kept]
    split = np.array(table["split"].to_pylist())[kept]
    assert counts["pictures_by_split"] == {
        name: pictures[split == name].sum() for name in ("train", "val", "test")
    }
    for name in ("val", "test"):
        assert counts["pictures_by_split"][name] / pictures.sum() == pytest.approx(0.1, abs=0.02)


def test_same_inputs_same_groups_and_another_seed_another_split(
    tmp_path: Path, real_targets, real_groups
) -> None:
    again = group.run(GroupConfig(), real_targets, str(tmp_path / "again"))
    assert again.fingerprint == real_groups.fingerprint
    other = group.run(GroupConfig(seed=1), real_targets, str(tmp_path / "other"))
    tables = real_groups.read_tables("rows"), other.read_tables("rows")
    assert tables[0].drop_columns("split").equals(tables[1].drop_columns("split"))
    assert not tables[0]["split"].equals(tables[1]["split"])


def test_a_finished_folder_is_not_made_again(real_targets, real_groups, monkeypatch) -> None:
    monkeypatch.setattr(group, "keep_first", None)
    assert group.run(GroupConfig(), real_targets, real_groups.uri) == real_groups


def test_prompts_that_are_all_alike_say_what_to_change(tmp_path: Path) -> None:
    vectors = np.eye(384, dtype=np.float32)[[0, 0, 0, 1]]
    made = targets_of(tmp_path, ["a", "b", "c", "d"], vectors)
    with pytest.raises(UserError, match=r"2 groups.*split_cosine"):
        group.run(GroupConfig(), made, str(tmp_path / "groups"))
