import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import GroupConfig, TargetsConfig
from img2prompt.data.similar.dedupe import keep_first
from img2prompt.data.similar.matches import MatchTask, nearest
from img2prompt.data.similar.split import components
from img2prompt.data.text.normalise import normalise, prompt_id
from img2prompt.data.vectors import matrix, vector_column
from img2prompt.distributed.cluster import Resources
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.text import PromptEncoder
from img2prompt.prepare import group, targets


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


def test_a_finished_folder_is_skipped(real_targets, real_groups, monkeypatch) -> None:
    monkeypatch.setattr(group, "keep_first", None)
    assert group.run(GroupConfig(), real_targets, real_groups.uri) == real_groups


def test_the_error_for_prompts_that_are_all_alike_names_the_setting(tmp_path: Path) -> None:
    vectors = np.eye(384, dtype=np.float32)[[0, 0, 0, 1]]
    made = targets_of(tmp_path, ["a", "b", "c", "d"], vectors)
    with pytest.raises(UserError, match=r"2 groups.*split_cosine"):
        group.run(GroupConfig(), made, str(tmp_path / "groups"))


def flat(found: object) -> list:
    """Arrays of a result, as lists."""
    parts = vars(found).values() if hasattr(found, "__dict__") else [found]
    return [np.asarray(part).tolist() for part in parts]


@pytest.fixture(scope="module")
def similar() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 48))[rng.integers(300, size=1500)]
    rows += 0.3 * rng.normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_the_number_of_workers_does_not_change_the_result(
    cluster, similar: np.ndarray, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("img2prompt.distributed.cluster.resources", lambda: Resources(workers, 0))
    spread = group.over_workers
    found = keep_first(similar, 0.85, 200, spread)
    assert flat(found) == flat(keep_first(similar, 0.85))
    assert 300 < len(found.kept) < 1200
    labels = components(similar, 0.8, 200, spread)
    assert flat(labels) == flat(components(similar, 0.8))
    halves = similar[:600], similar[600:]
    assert flat(nearest(*halves, 200, spread)) == flat(nearest(*halves, 10_000))


@pytest.mark.ray
def test_a_killed_worker_is_replaced(cluster, similar: np.ndarray, tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    def dying(function: partial) -> object:
        def die_at_the_fifth(job: MatchTask) -> object:
            with calls.open("a") as file:
                file.write("x")
            assert not function.args[0].vectors.flags.writeable, "copied, not shared"
            if calls.stat().st_size == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(job)

        return group.over_workers(die_at_the_fifth)

    found = keep_first(similar, 0.85, 200, dying)
    assert flat(found) == flat(keep_first(similar, 0.85))
    assert calls.stat().st_size > 5


@pytest.mark.ray
def test_many_prompts_are_compared_by_workers(
    cluster, tmp_path: Path, real_targets, real_groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    spread = group.over_workers
    monkeypatch.setattr(group, "over_workers", lambda f: used.append(f) or spread(f))
    monkeypatch.setattr(group, "SPREAD_ROWS", 500)
    found = group.run(GroupConfig(), real_targets, str(tmp_path / "groups"))
    assert len(used) == 4
    assert found.read_tables("rows").equals(real_groups.read_tables("rows"))
    leaks = [Path(groups.path(group.LEAKS)).read_bytes() for groups in (found, real_groups)]
    assert leaks[0] == leaks[1]
    assert found.counts == real_groups.counts
