import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from img2prompt.artifact import Artifact
from img2prompt.distributed import placement
from img2prompt.errors import UserError
from img2prompt.predict import evaluate
from img2prompt.predictors.base import PredictorSpec
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.neighbours import NearestNeighbours
from img2prompt.predictors.trained import TrainedRun
from img2prompt.storage import read_bytes
from img2prompt.workspace import Stage

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

RUNS = ("probe", "lora")


def unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def column(rows: list[dict], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def rows_of(chained, split: str) -> list[dict]:
    """Shard rows with their cached feature, joined by id."""
    table = chained.made.prepared.shards.read_tables(f"{split}/").to_pylist()
    features = Artifact.load(f"{chained.out}/features", "features").read_tables(f"{split}/")
    feature = {row["id"]: row["feature"] for row in features.to_pylist()}
    return [{**row, "feature": feature[row["id"]]} for row in table]


@pytest.fixture(scope="module")
def scores(chained) -> list[dict]:
    return chained.made.evaluation.read_table(evaluate.SCORES).to_pylist()


@pytest.fixture(scope="module")
def systems(chained) -> dict:
    return json.loads(open(f"{chained.out}/evaluation/metrics.json").read())["systems"]


def test_scores_are_of_the_test_pictures(chained, scores) -> None:
    rows = rows_of(chained, "test")
    assert [row["id"] for row in scores] == [row["id"] for row in rows]
    assert [row["source"] for row in scores] == [row["source"] for row in rows]
    groups = chained.made.prepared.groups.read_tables("rows").to_pylist()
    group = {row["prompt_id"]: row["group"] for row in groups}
    assert [row["group"] for row in scores] == [group[row["prompt_id"]] for row in rows]


def test_metrics_are_mean_cosines_by_system_and_source(chained, scores, systems) -> None:
    sources = column(scores, "source")
    assert set(sources) == {"scenes", "files"}
    for name, system in systems.items():
        cosines = column(scores, name)
        assert system["all"]["mean"] == pytest.approx(cosines.mean(), abs=1e-12)
        assert system["all"]["rows"] == len(cosines)
        assert set(system["by_source"]) == {"scenes", "files"}
        for source, score in system["by_source"].items():
            own = cosines[sources == source]
            assert score["mean"] == pytest.approx(own.mean(), abs=1e-12)
            assert score["rows"] == len(own)


def test_intervals_contain_their_mean(systems) -> None:
    for system in systems.values():
        for score in (system["all"], *system["by_source"].values()):
            assert -1 <= score["low"] < score["mean"] < score["high"] <= 1


def test_baselines_equal_brute_force(chained, scores) -> None:
    learn, held_out = rows_of(chained, "train"), rows_of(chained, "test")
    targets, truth = column(learn, "target"), unit(column(held_out, "target"))
    mean = unit(targets.mean(axis=0, keepdims=True))
    np.testing.assert_allclose(column(scores, evaluate.MEAN), (truth @ mean.T)[:, 0], atol=1e-6)
    similar = unit(column(held_out, "feature")) @ unit(column(learn, "feature")).T
    nearest = np.argsort(-similar, axis=1)[:, :3]
    weights = np.take_along_axis(similar, nearest, axis=1)
    assert weights.min() > 0
    said = unit((weights[..., None] * targets[nearest]).sum(axis=1))
    cosines = (said * truth).sum(axis=1)
    np.testing.assert_allclose(column(scores, evaluate.NEIGHBOURS), cosines, atol=1e-4)


def systems_of(chained) -> list[PredictorSpec]:
    """The baselines and the runs."""
    shards = chained.made.prepared.shards
    features = Artifact.load(f"{chained.out}/features", "features")
    runs = [Artifact.load(f"{chained.out}/runs/{name}", Stage.TRAIN) for name in RUNS]
    return [
        MeanVector(shards, name=evaluate.MEAN),
        NearestNeighbours(features, shards, 3, name=evaluate.NEIGHBOURS),
        *(TrainedRun(run, name=name) for run, name in zip(runs, RUNS, strict=True)),
    ]


def in_process(spec: PredictorSpec, rows: list[dict], flip: bool = False) -> np.ndarray:
    """Unit vectors of a predictor for all pictures, as they are or flipped, in this process."""
    pixels = np.stack([np.array(Image.open(io.BytesIO(row["image"]))) for row in rows])
    seen = np.ascontiguousarray(pixels[:, :, ::-1]) if flip else pixels
    with torch.inference_mode():
        return unit(spec.load(torch.device("cpu")).predict(torch.from_numpy(seen)).vectors)


@pytest.mark.parametrize("number", range(4))
def test_scores_are_those_of_each_predictor_in_this_process(chained, scores, number: int) -> None:
    rows, spec = rows_of(chained, "test"), systems_of(chained)[number]
    cosines = (in_process(spec, rows) * unit(column(rows, "target"))).sum(axis=1)
    np.testing.assert_allclose(column(scores, spec.name), cosines, atol=2e-3)
    assert cosines.std() > 0.02  # else the tolerance would prove nothing


def test_views_that_are_not_cached_are_seen_in_one_pass(chained, tmp_path, monkeypatch) -> None:
    streams, forward = [], evaluate._forward

    def watched(config, *arguments):
        streams.append(config.split)
        return forward(config, *arguments)

    monkeypatch.setattr(evaluate, "_forward", watched)
    prepared = chained.made.prepared
    features = Artifact.load(f"{chained.out}/features", "features")
    config = dataclasses.replace(chained.config.evaluate, split="val", views=("plain", "flip"))
    systems = systems_of(chained)
    made = evaluate.run(config, prepared, features, systems[2:], str(tmp_path / "flips"))
    assert streams == ["val"] * (len(systems) // evaluate.PREDICTORS_AT_ONCE)
    assert len(streams) == 1
    rows, table = rows_of(chained, "val"), made.read_table(evaluate.SCORES).to_pylist()
    truth = unit(column(rows, "target"))
    for spec in systems:
        plain, flipped = (in_process(spec, rows, flip) for flip in (False, True))
        cosines = (unit(plain + flipped) * truth).sum(axis=1)
        np.testing.assert_allclose(column(table, spec.name), cosines, atol=2e-3)
        if spec.name != evaluate.MEAN:
            assert abs(plain - flipped).max() > 1e-3


def test_actors_score_what_this_process_scores(chained, scores, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(placement, "FEW_PICTURES", 0)
    features = Artifact.load(f"{chained.out}/features", "features")
    lora, config = systems_of(chained)[3], chained.config.evaluate
    out, prepared = str(tmp_path / "actors"), chained.made.prepared
    made = evaluate.run(config, prepared, features, [lora], out)
    table = made.read_table(evaluate.SCORES)
    np.testing.assert_allclose(table["lora"].to_numpy(), column(scores, "lora"), atol=1e-3)


def test_names_of_predictors_must_differ(chained, tmp_path) -> None:
    features = Artifact.load(f"{chained.out}/features", "features")
    lora = systems_of(chained)[3]
    for systems in ([lora, lora], [dataclasses.replace(lora, name="group")]):
        with pytest.raises(UserError, match="allowed: names that differ"):
            evaluate.run(
                chained.config.evaluate, chained.made.prepared, features, systems, str(tmp_path)
            )


def test_systems_differ(scores) -> None:
    names = (evaluate.MEAN, evaluate.NEIGHBOURS, *RUNS)
    tables = [column(scores, name) for name in names]
    assert all(abs(a - b).max() > 0.01 for a in tables for b in tables if a is not b)


def test_the_table_names_systems_and_sources(chained, systems) -> None:
    table = evaluate.summary(chained.made.evaluation)
    names = (evaluate.MEAN, evaluate.NEIGHBOURS, *RUNS)
    assert [row[0] for row in table] == [n for m in names for n in (m, "  files", "  scenes")]
    lora = systems["lora"]["all"]
    interval = f"{lora['low']:.4f} to {lora['high']:.4f}"
    assert table[9] == ["lora", lora["mean"], interval, lora["rows"], lora["groups"]]


def test_the_report_names_every_system(chained, systems) -> None:
    evaluation = chained.made.evaluation
    assert evaluate.REPORT in evaluation.files
    html = read_bytes(evaluation.path(evaluate.REPORT)).decode()
    assert all(f"<bdi>{name}</bdi>" in html for name in systems)


def test_by_folds_all_pictures_are_scored(chained, tmp_path) -> None:
    features = Artifact.load(f"{chained.out}/features", "features")
    config = dataclasses.replace(chained.config.evaluate, folds=3, runs=("probe",))
    probe, lora = systems_of(chained)[2:]
    prepared, out = chained.made.prepared, str(tmp_path / "folds")
    scored = evaluate.run(config, prepared, features, [probe], out)
    table = scored.read_table(evaluate.SCORES).to_pylist()
    ids = [row["id"] for split in ("train", "val", "test") for row in rows_of(chained, split)]
    assert [row["id"] for row in table] == ids
    counts = scored.counts
    assert (counts["split"], counts["folds"]) == ("cross-validated", 3)
    systems = counts["systems"]
    assert systems["probe"]["all"]["mean"] == pytest.approx(column(table, "probe").mean())
    assert systems["probe"]["all"]["groups"] == len(set(column(table, "group")))
    assert abs(column(table, "probe") - column(table, evaluate.MEAN)).max() > 0.01
    html = read_bytes(scored.path(evaluate.REPORT)).decode()
    assert "3 folds of whole prompt groups" in html
    with pytest.raises(UserError, match="lora does not answer from"):
        evaluate.run(config, prepared, features, [lora], str(tmp_path / "tuned"))


def test_another_split_and_baselines_alone(chained, tmp_path, monkeypatch) -> None:
    made, features = chained.made, Artifact.load(f"{chained.out}/features", "features")
    config = dataclasses.replace(chained.config.evaluate, split="val", neighbours=10**6, runs=())
    scored = evaluate.run(config, made.prepared, features, [], str(tmp_path / "val"))
    assert list(scored.counts["systems"]) == [evaluate.MEAN, evaluate.NEIGHBOURS]
    assert scored.counts["split"] == "val"
    ids = scored.read_table(evaluate.SCORES)["id"].to_pylist()
    assert ids == [row["id"] for row in rows_of(chained, "val")]
    monkeypatch.setattr(evaluate, "predict_split", None)
    assert evaluate.run(config, made.prepared, features, [], str(tmp_path / "val")) == scored
    with pytest.raises(UserError, match=r"split: saved 'val', requested 'test'"):
        evaluate.run(
            dataclasses.replace(config, split="test"),
            made.prepared,
            features,
            [],
            str(tmp_path / "val"),
        )
