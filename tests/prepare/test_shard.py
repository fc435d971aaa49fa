import csv
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import (
    CleanConfig,
    GroupConfig,
    PrepareConfig,
    ShardConfig,
    TargetsConfig,
)
from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.data.shards import SCHEMA, SPLITS
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.sources.rows import REJECTED_SCHEMA
from img2prompt.data.vectors import matrix
from img2prompt.distributed.progress import TIMINGS
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.prepare import clean, group, index, shard, targets

pytestmark = pytest.mark.ray

CONFIG = ShardConfig(size=24, rows_per_shard=16, rows_per_group=5)
LIMITS = CleanConfig()
DAMAGED, MISSING, SMALL = (f"files/{number}.0.png" for number in (3, 4, 5))


@dataclass(frozen=True)
class Upstream:
    index: Artifact
    clean: Artifact
    targets: Artifact
    groups: Artifact

    def shards(self, out: Path, config: ShardConfig = CONFIG) -> Artifact:
        return shard.run(
            config, LIMITS, self.index, self.clean, self.targets, self.groups, str(out)
        )


def write_pictures(folder: Path) -> str:
    """70 pictures of 68 prompts as files of other proportions; two prompts are nearly the same."""
    lines = [["id", "file", "prompt"]]
    source = SceneSource(prompts=68, pictures_per_prompt=1, size=40)
    for number, row in enumerate(list_rows(source)):
        assert isinstance(row, dict)
        image = Image.open(io.BytesIO(next(read_pictures([(row["uri"], row["member"])]))))
        image.resize((40 + number % 3 * 9, 47)).save(folder / f"{number}.0.png")
        lines.append([f"{number}.0.png", f"{number}.0.png", row["prompt"]])
    lines.append(["again", "9.0.png", lines[11][2]])
    lines.append(["near", "9.0.png", f"{lines[12][2]}!"])
    with open(folder / "pictures.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return str(folder / "pictures.csv")


@pytest.fixture(scope="module")
def upstream(cluster, tmp_path_factory: pytest.TempPathFactory) -> Upstream:
    """Stages before the shards; then one picture is damaged, one deleted, one made too small."""
    folder = tmp_path_factory.mktemp("upstream")
    source = PictureSource(path=write_pictures(folder), name="files")
    config = PrepareConfig(name="x", sources=(source,), group=GroupConfig(val_fraction=0.2))
    listed = index.run(config, str(folder / "index"))
    cleaned = clean.run(LIMITS, listed, str(folder / "clean"))
    encoded = targets.run(TargetsConfig(), cleaned, str(folder / "targets"))
    grouped = group.run(config.group, encoded, str(folder / "groups"))
    damaged = folder / "3.0.png"
    damaged.write_bytes(damaged.read_bytes()[:-400])
    (folder / "4.0.png").unlink()
    Image.new("RGB", (64, 15)).save(folder / "5.0.png")
    return Upstream(listed, cleaned, encoded, grouped)


@pytest.fixture(scope="module")
def shards(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return upstream.shards(tmp_path_factory.mktemp("shards"))


def files(artifact: Artifact) -> dict[str, bytes]:
    names = [name for name in artifact.names() if name != TIMINGS]
    return {name: Path(artifact.path(name)).read_bytes() for name in names}


def test_pictures_that_cannot_be_read_are_rejected_with_reasons(shards: Artifact) -> None:
    rejected = shards.read_tables("rejected/")
    assert rejected.schema.equals(REJECTED_SCHEMA)
    reasons = {row["id"]: row["reason"] for row in rejected.to_pylist()}
    assert set(reasons) == {DAMAGED, MISSING, SMALL}
    assert "3.0.png: damaged PNG" in reasons[DAMAGED]
    assert reasons[MISSING].startswith("missing picture: ")
    assert "64 x 15 pixels; allowed: 16 or more" in reasons[SMALL]
    assert shards.counts["rejected"] == {"unreadable picture": 2, "missing picture": 1}


def test_each_split_has_every_picture_of_its_kept_prompts(
    upstream: Upstream, shards: Artifact
) -> None:
    prompts = {
        row["id"]: row["prompt_id"] for row in upstream.clean.read_tables("rows").to_pylist()
    }
    groups = upstream.groups.read_tables("rows").to_pylist()
    kept = {row["prompt_id"]: row["split"] for row in groups if row["kept"]}
    assert len(kept) < len(groups)  # a near duplicate was dropped
    for split in SPLITS:
        table = shards.read_tables(f"{split}/")
        assert table.schema.equals(SCHEMA)
        expected = {row_id for row_id, prompt in prompts.items() if kept.get(prompt) == split}
        assert set(table["id"].to_pylist()) == expected - {DAMAGED, MISSING, SMALL}
        assert table.num_rows == len(set(table["id"].to_pylist())) == shards.counts[split] > 3
        assert table["prompt_id"].to_pylist() == [prompts[i] for i in table["id"].to_pylist()]


def test_targets_are_those_of_the_prompts(upstream: Upstream, shards: Artifact) -> None:
    encoded = upstream.targets.read_tables("rows")
    vectors = dict(zip(encoded["prompt_id"].to_pylist(), matrix(encoded["target"]), strict=True))
    for split in SPLITS:
        table = shards.read_tables(f"{split}/")
        expected = np.array([vectors[prompt] for prompt in table["prompt_id"].to_pylist()])
        np.testing.assert_array_equal(matrix(table["target"]), expected)


def test_pictures_equal_those_of_clips_processor(upstream: Upstream, shards: Artifact) -> None:
    places = {row["id"]: row["uri"] for row in upstream.index.read_tables("rows").to_pylist()}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    for row in shards.read_tables("val/").to_pylist():
        found = np.asarray(Image.open(io.BytesIO(row["image"])))
        original = Image.open(places[row["id"]])
        expected = processor(
            original, do_normalize=False, do_rescale=False, return_tensors="np"
        ).pixel_values[0]
        away = np.abs(found.astype(int) - expected.transpose(1, 2, 0))
        assert away.max() <= 1
        assert (away > 0).mean() < 0.02


def test_files_and_row_groups_have_the_configured_rows(shards: Artifact) -> None:
    sizes = [shards.files[name].rows for name in shards.names("train/")]
    assert len(sizes) > 2
    assert all(13 <= size <= 16 for size in sizes[:-1])  # 16 less what was rejected
    assert sizes.count(16) >= len(sizes) - 4
    assert shards.counts["train"] == sum(sizes)
    assert len(shards.names("rejected/train/")) == len(sizes)


def test_rows_keep_the_order_of_the_index_and_are_repeatable(
    upstream: Upstream, shards: Artifact, tmp_path: Path
) -> None:
    listed = upstream.index.read_tables("rows")["id"].to_pylist()
    for split in SPLITS:
        places = [
            listed.index(row_id) for row_id in shards.read_tables(f"{split}/")["id"].to_pylist()
        ]
        assert places == sorted(places)
    again = upstream.shards(tmp_path)
    assert again.fingerprint == shards.fingerprint
    assert files(again) == files(shards)


def test_timings_name_the_bottleneck(shards: Artifact) -> None:
    timings = json.loads(Path(shards.path(TIMINGS)).read_bytes())
    assert timings["rows"] == sum(shards.counts[split] for split in SPLITS) + 3
    assert timings["bottleneck"] in shard.STEPS
    assert all(timings["busy_s"][step] > 0 for step in shard.STEPS)


def test_shards_do_not_depend_on_the_files_of_the_index(
    upstream: Upstream, shards: Artifact, tmp_path: Path
) -> None:
    """An index in several files gives the same shards as one in one file."""
    parts: list[Artifact] = []
    for artifact in (upstream.index, upstream.clean):
        draft = Draft(str(tmp_path / artifact.stage), artifact.stage, artifact.config, {})
        index_rows = upstream.index.read_tables("rows")
        table = artifact.read_tables("rows")
        for number, start in enumerate(range(0, index_rows.num_rows, 30)):
            ids = index_rows["id"].slice(start, 30)
            part = table.filter(pc.is_in(table["id"], ids.combine_chunks()))
            draft.write_table(f"rows-{number:05d}.parquet", part)
        parts.append(draft.publish())
    made = replace(upstream, index=parts[0], clean=parts[1]).shards(tmp_path / "shards")
    assert files(made) == files(shards)


def test_a_killed_run_writes_only_shards_without_a_receipt(
    upstream: Upstream, shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(draft: Draft, **counts: object) -> Artifact:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            upstream.shards(tmp_path)
    lost = "train/00001.parquet"
    (tmp_path / "receipts" / f"{lost}.json").unlink()
    (tmp_path / lost).write_bytes(b"half of a file")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    made = upstream.shards(tmp_path)
    assert files(made) == files(shards)
    rewritten = {str(p.relative_to(tmp_path)) for p in before if p.stat().st_mtime_ns != before[p]}
    assert rewritten == {lost, f"rejected/{lost}", f"digests/{lost}"}


def test_all_copies_of_a_picture_but_the_first_are_rejected(
    upstream: Upstream, shards: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any names, prompts and splits, and with a kill while copies are removed."""
    places = {row["id"]: row["uri"] for row in upstream.index.read_tables("rows").to_pylist()}
    ids = {split: shards.read_tables(f"{split}/")["id"].to_pylist() for split in SPLITS}
    first, *copies = ids["train"][1], ids["train"][-1], ids["val"][2], ids["test"][0]
    before = {row_id: Path(places[row_id]).read_bytes() for row_id in copies}

    def killed(*_: object) -> Artifact:
        raise KeyboardInterrupt

    try:
        for row_id in copies:
            Path(places[row_id]).write_bytes(Path(places[first]).read_bytes())
        whole = upstream.shards(tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(shard, "_reject_copies", killed)
            with pytest.raises(KeyboardInterrupt):
                upstream.shards(tmp_path / "shards")
        with monkeypatch.context() as patch:
            patch.setattr(shard, "_publish", killed)
            with pytest.raises(KeyboardInterrupt):
                upstream.shards(tmp_path / "shards")
        # As if the kill had come between a shard and its receipt.
        receipt = tmp_path / "shards" / "receipts" / f"{shards.names('train/')[-1]}.json"
        told = json.loads(receipt.read_text())
        receipt.write_text(json.dumps(told | {"rows": told["rows"] + 1, "digest": "before"}))
        made = upstream.shards(tmp_path / "shards")
    finally:
        for row_id, data in before.items():
            Path(places[row_id]).write_bytes(data)
    assert files(made) == files(whole)
    assert made.fingerprint == whole.fingerprint
    reasons = {row["id"]: row["reason"] for row in made.read_table(shard.COPIES).to_pylist()}
    assert reasons == dict.fromkeys(copies, f"repeated picture: it has the bytes of {first}")
    assert made.counts["rejected"]["repeated picture"] == 3
    for split in SPLITS:
        kept = made.read_tables(f"{split}/")["id"].to_pylist()
        assert kept == [row_id for row_id in ids[split] if row_id not in copies]
        assert made.counts[split] == len(kept)


def test_finished_shards_are_skipped(
    upstream: Upstream, shards: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_rows", None)
    assert upstream.shards(Path(shards.uri)) == shards
    with pytest.raises(UserError, match=r"config\.size: saved 24, requested 32"):
        upstream.shards(Path(shards.uri), CONFIG.replace({"size": 32}))


def test_whole_pictures_as_jpeg(upstream: Upstream, tmp_path: Path) -> None:
    made = upstream.shards(tmp_path, CONFIG.replace({"fit": "whole", "encoding": "jpeg"}))
    places = {row["id"]: row["uri"] for row in upstream.index.read_tables("rows").to_pylist()}
    for row in made.read_tables("test/").to_pylist():
        image = Image.open(io.BytesIO(row["image"]))
        assert (image.format, image.size) == ("JPEG", (24, 24))
        original = Image.open(places[row["id"]]).convert("RGB")
        expected = original.resize((24, 24), Image.Resampling.BICUBIC)
        away = np.asarray(image, float) - np.asarray(expected, float)
        assert np.abs(away).mean() < 4


def test_a_split_without_readable_pictures_is_an_error(upstream: Upstream, tmp_path: Path) -> None:
    limits = CleanConfig(min_side=10_000)
    with pytest.raises(UserError, match=r"a split has no picture.*'unreadable picture': \d\d"):
        shard.run(
            CONFIG,
            limits,
            upstream.index,
            upstream.clean,
            upstream.targets,
            upstream.groups,
            str(tmp_path),
        )
