"""Predictors with confidences, of small artifacts in this process."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.numpy
import torch
from small_artifacts import pixels_of, write_features, write_run, write_shards

from img2prompt.artifact import Artifact
from img2prompt.config.predict import CalibrateConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import PlanConfig
from img2prompt.data.vectors import matrix
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.towers.build import open_tower
from img2prompt.predictors.base import Answers
from img2prompt.predictors.build import choose_predictor
from img2prompt.predictors.confidence import (
    SIGNALS,
    CalibratedPredictor,
    CalibratedRun,
    ConfidenceHead,
    Signals,
    open_calibrated,
)
from img2prompt.predictors.neighbours import NearestNeighbours
from img2prompt.predictors.trained import TrainedRun
from img2prompt.workspace import CONFIDENCE_HEAD, Stage, Workspace

CPU = torch.device("cpu")
HEAD = ConfidenceHead(np.linspace(-0.1, 0.2, len(SIGNALS)), 0.3, -0.9, 0.9)


@pytest.fixture
def workspace(tmp_path: Path, tiny_tower: str) -> Workspace:
    """Shards, features, a run `probe`, and `sure`, the run with confidences."""
    shards = write_shards(tmp_path / "shards")
    features = write_features(tmp_path / "features", shards, tiny_tower)
    probe = write_run(tmp_path / "runs" / "probe", shards, tiny_tower, PlanConfig())
    inputs = {"shards": shards.fingerprint, "run": probe.fingerprint}
    inputs["features"] = features.fingerprint
    config = CalibrateConfig(run="probe", neighbours=3)
    draft = Draft.open(str(tmp_path / "runs" / "sure"), Stage.CALIBRATION, config, inputs)
    numbers = {key: np.float64(getattr(HEAD, key)) for key in ("bias", "low", "high")}
    tensors = {"weights": HEAD.weights, **{k: np.asarray(v) for k, v in numbers.items()}}
    tensors["novelty.mean"], tensors["novelty.whitening"] = np.zeros(32), np.eye(32)
    tensors["novelty.limit"] = np.asarray(1e9)
    draft.write_bytes(CONFIDENCE_HEAD, safetensors.numpy.save(tensors))
    draft.publish()
    return Workspace(str(tmp_path))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.inference_mode()
def signals_by_hand(workspace: Workspace, vectors: np.ndarray, pixels: torch.Tensor) -> np.ndarray:
    shards, config = workspace.open_shards(), workspace.open_features().config["tower"]
    tower = open_tower(TowerConfig(weights=config["weights"])).eval()
    train = unit(tower(pixels_of(shards, "train")).double().numpy())
    likeness = unit(tower(pixels).double().numpy()) @ train.T
    targets = matrix(shards.read_tables("train/", ["target"])["target"]).astype(np.float64)
    rows = []
    for vector, like in zip(vectors.astype(np.float64), likeness, strict=True):
        own = vector / np.linalg.norm(vector)
        near = np.sort(targets @ own)[::-1]
        nearest = np.argsort(-like)[:3]
        mean = (like[nearest] / like[nearest].sum()) @ targets[nearest]
        middle = targets.mean(axis=0)
        rows.append(
            [
                np.log(np.linalg.norm(vector)),
                near[0],
                near[:10].mean(),
                own @ middle / np.linalg.norm(middle),
                own @ mean / np.linalg.norm(mean),
                np.linalg.norm(mean),
                like[nearest].mean(),
            ]
        )
    return np.array(rows)


@torch.inference_mode()
def test_vectors_are_those_of_the_run_and_confidences_those_of_the_head(workspace) -> None:
    workspace.check_predictor("sure")
    spec, shards = choose_predictor("sure", workspace), workspace.open_shards()
    spec.check(shards)
    pixels = pixels_of(shards, "test")
    answers = spec.load(CPU).predict(pixels)
    run = TrainedRun(workspace.open_run("probe"), name="probe").load(CPU).predict(pixels)
    np.testing.assert_allclose(answers.vectors, run.vectors, atol=1e-6)
    signals = signals_by_hand(workspace, run.vectors, pixels)
    np.testing.assert_allclose(answers.confidences, HEAD.apply(signals), atol=5e-4)
    assert np.ptp(answers.confidences) > 0.005
    features = workspace.open_features()
    assert spec.reads_features(features)
    table = features.read_tables("test/")
    plain = table.filter([view == "plain" for view in table["view"].to_pylist()])
    head = spec.load_head(CPU).predict(torch.tensor(plain["feature"].to_pylist()))
    np.testing.assert_allclose(head.confidences, answers.confidences, atol=2e-3)


@torch.inference_mode()
def test_pictures_beyond_the_limit_get_the_lowest_confidence(workspace: Workspace) -> None:
    spec, pixels = choose_predictor("sure", workspace), pixels_of(workspace.open_shards(), "test")
    assert isinstance(spec, CalibratedRun)
    tower = spec.neighbours.load_tower(CPU)
    distances = spec.novelty.distances(tower(pixels).double().numpy())
    novelty = replace(spec.novelty, limit=float(np.median(distances)))
    limited = replace(spec, novelty=novelty).load(CPU).predict(pixels).confidences
    far, confidences = distances > novelty.limit, spec.load(CPU).predict(pixels).confidences
    assert limited is not None
    assert confidences is not None
    np.testing.assert_array_equal(limited, np.where(far, np.float32(HEAD.low), confidences))
    assert far.sum() == 3


@torch.inference_mode()
def test_a_bad_vector_has_no_confidence_and_bad_features_the_lowest(workspace: Workspace) -> None:
    spec, shards = choose_predictor("sure", workspace), workspace.open_shards()
    assert isinstance(spec, CalibratedRun)
    vectors = matrix(shards.read_tables("test/", ["target"])["target"]).copy()
    features = torch.randn(len(vectors), 32, generator=torch.Generator().manual_seed(0))
    predictor = spec.load_head(CPU)
    assert isinstance(predictor, CalibratedPredictor)

    def confidences() -> np.ndarray:
        base = Mock(predict=lambda inputs: Answers(vectors))
        answers = replace(predictor, base=base).predict(features)
        assert answers.confidences is not None
        return answers.confidences

    expected = confidences()
    vectors[1, 7], features[2, 5] = np.inf, np.nan
    expected[[1, 2]] = np.nan, HEAD.low
    np.testing.assert_array_equal(confidences(), expected)


@torch.inference_mode()
def test_a_calibrated_predictor_keeps_its_number_of_neighbours(
    workspace: Workspace, tmp_path: Path
) -> None:
    shards, features = workspace.open_shards(), workspace.open_features()
    inputs = {"shards": shards.fingerprint, "features": features.fingerprint}
    config = CalibrateConfig(run="neighbours", neighbours=3)
    draft = Draft.open(str(tmp_path / "runs" / "near"), Stage.CALIBRATION, config, inputs)
    tensors = Path(workspace.run("sure")) / CONFIDENCE_HEAD
    draft.write_bytes(CONFIDENCE_HEAD, tensors.read_bytes())
    draft.publish()
    spec = choose_predictor("near", workspace)
    assert isinstance(spec, CalibratedRun)
    assert spec.base == NearestNeighbours(features, shards, 3, name="neighbours")


def test_confidences_fall_for_answers_unlike_the_training_prompts() -> None:
    rng = np.random.default_rng(0)
    targets = unit(rng.normal(size=(30, 384)) + 3)
    like, unlike = targets[:5], unit(rng.normal(size=(5, 384)))
    signals = Signals(targets)
    near, far = (signals.of(own, targets[:5], np.ones(5)) for own in (like, unlike))
    for name in SIGNALS[1:5]:
        column = SIGNALS.index(name)
        assert near[:, column].min() > far[:, column].max() + 0.1


def test_another_run_is_refused(workspace: Workspace, tiny_tower: str, tmp_path: Path) -> None:
    shards, features = workspace.open_shards(), workspace.open_features()
    other = write_run(tmp_path / "other", shards, tiny_tower, PlanConfig(nfz_rate=0.5))
    calibration = Artifact.load(workspace.run("sure"), Stage.CALIBRATION)
    base = TrainedRun(other, name="probe")
    with pytest.raises(UserError, match="was fitted for another run than that of 'probe'"):
        open_calibrated(calibration, base, features, shards, "sure")
