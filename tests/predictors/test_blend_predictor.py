"""Blends of predictors of small artifacts, in this process."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from small_artifacts import pixels_of, write_features, write_run, write_shards

from img2prompt.artifact import Artifact
from img2prompt.config.predict import BlendConfig
from img2prompt.config.train import PlanConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.predictors.blend import BlendedRuns, BlendWeights, open_blend
from img2prompt.predictors.build import choose_predictor
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.trained import TrainedRun
from img2prompt.workspace import BLEND_WEIGHTS, Stage, Workspace

CPU = torch.device("cpu")
WEIGHTS = BlendWeights(
    np.linspace(0.1, 1, 2 * 384, dtype=np.float32).reshape(2, 384),
    np.linspace(-0.01, 0.01, 384, dtype=np.float32),
)


@pytest.fixture
def out(tmp_path: Path, tiny_tower: str) -> Path:
    """A workspace with shards, features, a run `probe`, and a blend of it with `mean`."""
    shards = write_shards(tmp_path / "shards")
    write_features(tmp_path / "features", shards, tiny_tower)
    probe = write_run(tmp_path / "runs" / "probe", shards, tiny_tower, PlanConfig())
    inputs = {"shards": shards.fingerprint, "run probe": probe.fingerprint}
    inputs["shards mean"] = shards.fingerprint
    config = BlendConfig(runs=("probe", "mean"))
    draft = Draft.open(str(tmp_path / "runs" / "blend"), Stage.BLEND, config, inputs)
    tensors = {"weights": WEIGHTS.weights, "offset": WEIGHTS.offset}
    draft.write_bytes(BLEND_WEIGHTS, safetensors.numpy.save(tensors))
    draft.publish()
    return tmp_path


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.inference_mode()
def test_a_blend_is_chosen_by_name_like_a_run(out: Path) -> None:
    workspace = Workspace(str(out))
    workspace.check_predictor("blend")
    spec, shards = choose_predictor("blend", workspace), workspace.open_shards()
    assert isinstance(spec, BlendedRuns)
    spec.check(shards)
    pixels = pixels_of(shards, "test")
    members = [
        TrainedRun(workspace.open_run("probe"), name="probe").load(CPU).predict(pixels).vectors,
        MeanVector(shards, name="mean").load(CPU).predict(pixels).vectors,
    ]
    expected = unit(sum(unit(own) * w for own, w in zip(members, WEIGHTS.weights, strict=True))
                    + WEIGHTS.offset)  # fmt: skip
    vectors = spec.load(CPU).predict(pixels).vectors
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    features = workspace.open_features()
    assert spec.reads_features(features)
    rows = features.read_tables("test/").filter(
        [view == "plain" for view in features.read_tables("test/")["view"].to_pylist()]
    )
    head = spec.load_head(CPU).predict(torch.tensor(rows["feature"].to_pylist()))
    np.testing.assert_allclose(head.vectors, expected, atol=2e-3)


def test_another_member_is_refused(out: Path, tiny_tower: str) -> None:
    workspace = Workspace(str(out))
    blend = Artifact.load(workspace.run("blend"), Stage.BLEND)
    other = write_run(out / "other", workspace.open_shards(), tiny_tower, PlanConfig(nfz_rate=0.5))
    members = [TrainedRun(other, name="probe"), MeanVector(workspace.open_shards(), name="mean")]
    with pytest.raises(UserError, match="was fitted for another 'probe': delete it and run"):
        open_blend(blend, members, "blend")


def test_a_blend_without_its_member_is_refused_early(out: Path) -> None:
    (out / "runs" / "probe" / "manifest.json").unlink()
    with pytest.raises(UserError, match="runs/probe holds no finished train"):
        Workspace(str(out)).check_predictor("blend")


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_bad_vector_of_a_member_costs_its_picture_alone(bad: float) -> None:
    vectors = np.ones((2, 3, 384))
    good = WEIGHTS.apply(vectors)
    vectors[1, 2] = bad
    blended = WEIGHTS.apply(vectors)
    np.testing.assert_array_equal(blended[:2], good[:2])
    assert np.isnan(blended[2]).any()
