import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from transformers import CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import FeaturesConfig
from img2prompt.data.shards import SPLITS, ShardRows
from img2prompt.data.vectors import matrix, vector_column
from img2prompt.distributed import actors
from img2prompt.distributed.progress import TIMINGS
from img2prompt.errors import UserError
from img2prompt.model.towers.clip import ClipTower
from img2prompt.model.towers.weights import STAMP
from img2prompt.prepare import features
from img2prompt.storage import read_bytes
from img2prompt.workspace import Stage

pytestmark = pytest.mark.ray

REPO = Path(__file__).parents[2]

DRIVER = """
import os, signal, sys
from img2prompt.distributed import cluster
from img2prompt.artifact import Artifact
from img2prompt.draft import Draft
from img2prompt.config.prepare import FeaturesConfig
from img2prompt.prepare import features

write = Draft.write_table

def write_and_die(draft, *table):
    write(draft, *table)
    if len(draft.receipts()) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Draft.write_table = write_and_die
config, shards, out = sys.argv[1:]
with cluster.connect():
    features.run(FeaturesConfig.from_json(config), Artifact.load(shards, "shards"), out)
"""


@pytest.fixture(scope="module")
def config(embedded: Artifact) -> FeaturesConfig:
    return FeaturesConfig.from_json(json.dumps(embedded.config))


def by_hand(shards: Artifact, split: str, tower: str, view: str) -> np.ndarray:
    """Features (N, D) of transformers' own model in one process."""
    rows = ShardRows(shards, split)
    pixels = torch.from_numpy(rows.fetch(np.arange(len(rows))).inputs)
    if view == "flip":
        pixels = torch.from_numpy(pixels.numpy()[:, :, ::-1].copy())
    model = CLIPVisionModel.from_pretrained(tower).eval()
    mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
    normalised = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        return model(pixel_values=normalised).pooler_output.numpy()


@pytest.mark.parametrize("view", ["plain", "flip"])
@pytest.mark.parametrize("split", SPLITS)
def test_features_equal_the_towers_to_float16(
    prepared, embedded, tiny_tower, split: str, view: str
) -> None:
    table = embedded.read_tables(f"{split}/")
    found = matrix(table.filter(pc.field("view") == view)["feature"])
    expected = by_hand(prepared.shards, split, tiny_tower, view)
    assert found.dtype == np.float16
    assert found.shape == expected.shape
    assert expected.std(axis=0).min() > 0.02
    # Half a unit of the last place of a float16, and float32 noise of another batch size.
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-11, atol=2e-5)


def test_rows_are_those_of_the_shards_in_their_order(prepared, embedded) -> None:
    names = [name for split in SPLITS for name in prepared.shards.names(f"{split}/")]
    assert len(names) > 8
    assert embedded.names() == sorted([*names, STAMP, TIMINGS])
    for name in names:
        table, ids = embedded.read_table(name), prepared.shards.read_table(name)["id"].to_pylist()
        assert table["id"].to_pylist() == ids * 2
        assert table["view"].to_pylist() == ["plain"] * len(ids) + ["flip"] * len(ids)
    pictures = sum(prepared.shards.counts[split] for split in SPLITS)
    assert embedded.counts == {"pictures": pictures, "rows": 2 * pictures}


def test_timings_have_the_seconds_of_each_step(prepared, embedded) -> None:
    timings = json.loads(read_bytes(embedded.path(TIMINGS)))
    assert timings["rows"] == sum(prepared.shards.counts[split] for split in SPLITS)
    assert set(timings["busy_s"]) == {"read", "decode", "forward", "write"}
    assert all(0 < seconds < timings["wall_s"] * 4 for seconds in timings["busy_s"].values())


def test_a_killed_driver_loses_only_unfinished_shards(
    prepared, embedded, config: FeaturesConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", DRIVER, config.to_json(), prepared.shards.uri, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    killed = subprocess.run(command, env=environment, cwd=REPO, capture_output=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    assert len(finished) == 3
    with pytest.raises(UserError, match="was not finished"):
        Artifact.load(str(tmp_path), Stage.FEATURES)
    asked: list[str] = []
    forward_shards = actors.forward_shards

    def watched(shards, names, *more):
        asked.extend(names)
        return forward_shards(shards, names, *more)

    monkeypatch.setattr(features, "forward_shards", watched)
    resumed = features.run(config, prepared.shards, str(tmp_path))
    done = {str(path.relative_to(tmp_path)) for path in finished}
    assert set(asked) == set(embedded.names()) - done - {STAMP, TIMINGS}
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert resumed.fingerprint == embedded.fingerprint
    assert resumed.counts == embedded.counts


def test_finished_features_are_skipped(
    prepared, embedded, config: FeaturesConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "forward_shards", None)
    assert features.run(config, prepared.shards, embedded.uri) == embedded
    with pytest.raises(UserError, match=r"config\.precision: saved 'fp32', requested 'bf16'"):
        features.run(config.replace({"precision": "bf16"}), prepared.shards, embedded.uri)
    # How they are made is no matter.
    made_otherwise = config.replace({"batch_size": 21, "workers": 1, "tower.download": True})
    assert features.run(made_otherwise, prepared.shards, embedded.uri) == embedded
    begun = json.loads(read_bytes(f"{embedded.uri}/config.json"))
    assert (begun["batch_size"], begun["workers"], begun["tower"]["download"]) == (20, 2, False)


def test_another_tower_is_another_input(
    prepared, embedded, config: FeaturesConfig, tmp_path: Path
) -> None:
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    ClipTower.fresh({**vision, "image_size": 32}, 1).save(tmp_path / "tower")
    other = config.replace({"tower.weights": str(tmp_path / "tower")})
    with pytest.raises(UserError, match=r"inputs\.tower"):
        features.run(other, prepared.shards, embedded.uri)
    ClipTower.fresh({**vision, "image_size": 64}, 1).save(tmp_path / "tower")
    with pytest.raises(UserError, match="pictures of 32 pixels, the tower reads 64"):
        features.run(other, prepared.shards, str(tmp_path / "out"))


def test_more_actors_than_the_cluster_has_room_for_are_refused(
    prepared, config: FeaturesConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="the cluster has 4 at most"):
        features.run(config.replace({"workers": 9}), prepared.shards, str(tmp_path))


def test_a_non_finite_feature_is_refused_with_its_row() -> None:
    """A value that float16 cannot hold counts as well."""
    vectors = np.ones((3, 8), np.float32)
    rows = pa.table({"id": list("abc"), "vector": vector_column(vectors)})
    assert features._one_row_a_view(rows, ("plain", "flip"), "features")["id"].to_pylist() == [
        *"abcabc"
    ]
    vectors[1, 6] = 70_000
    rows = pa.table({"id": list("abc"), "vector": vector_column(vectors)})
    with pytest.raises(UserError, match=r"features of x: 1 of 6 vectors .* the first of 'b'\."):
        features._one_row_a_view(rows, ("plain", "flip"), "features of x")
