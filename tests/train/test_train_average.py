"""Averages of runs are runs: end points, greedy choice, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from small_artifacts import pixels_of, write_features, write_shards
from tiny import FINETUNE, config_of, model_of
from torch import Tensor

from img2prompt.artifact import Artifact
from img2prompt.config.average import AverageConfig
from img2prompt.config.predict import ExportConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import PlanConfig
from img2prompt.data.vectors import matrix
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import WEIGHTS, learned_state, load_head, load_prompt_model
from img2prompt.model.towers.build import open_tower
from img2prompt.predict import export
from img2prompt.predictors.trained import TrainedRun
from img2prompt.train import average
from img2prompt.train.job import TrainInputs

PROBE = PlanConfig()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_shards(tmp_path_factory.mktemp("average") / "shards")


@pytest.fixture(scope="module")
def features(
    shards: Artifact, tiny_tower: str, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    folder = tmp_path_factory.mktemp("average") / "features"
    return write_features(folder, shards, tiny_tower, ("plain",))


def write_run(
    folder: Path, shards: Artifact, tower: str, plan: PlanConfig, seed: int, **changes: str
) -> Artifact:
    """A finished run whose tensors are moved from their start; `start` is a fingerprint."""
    start = {"start": changes.pop("start")} if "start" in changes else {}
    config = config_of(tower, plan, **changes)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in learned_state(model_of(config)).items()
    }
    prints = {"tower": open_tower(config.tower).base_fingerprint, "shards": shards.fingerprint}
    draft = Draft.open(str(folder), "train", config, prints | start)
    draft.write_bytes(WEIGHTS, safetensors.torch.save(state))
    return draft.publish()


@torch.inference_mode()
def vectors(run: Artifact, shards: Artifact) -> Tensor:
    return load_prompt_model(run)(pixels_of(shards, "val"))


def mean_cosine(predicted: np.ndarray, targets: np.ndarray) -> float:
    lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(targets, axis=1)
    return float(((predicted * targets).sum(axis=1) / lengths).mean())


def test_a_greedy_soup_of_probes_is_the_one_computed_by_hand(
    shards: Artifact, features: Artifact, tiny_tower: str, tmp_path: Path
) -> None:
    """The mean of linear heads answers with the mean of their answers."""
    names = [f"probe-{seed}" for seed in range(5)]
    runs = {
        name: write_run(tmp_path / name, shards, tiny_tower, PROBE, seed)
        for seed, name in enumerate(names)
    }
    inputs = matrix(features.read_tables("val/", ["feature"])["feature"]).astype(np.float64)
    targets = matrix(shards.read_tables("val/", ["target"])["target"]).astype(np.float64)
    answers = {}
    for name, run in runs.items():
        state = safetensors.torch.load_file(run.path(WEIGHTS))
        weight, bias = (state[f"head.{part}"].double().numpy() for part in ("weight", "bias"))
        answers[name] = inputs @ weight.T + bias
    scores = {name: mean_cosine(answers[name], targets) for name in names}
    used: list[str] = []
    best = -1.0
    for name in sorted(names, key=lambda name: -scores[name]):
        score = mean_cosine(np.mean([answers[n] for n in [*used, name]], axis=0), targets)
        if score >= best:
            used, best = [*used, name], score
    assert 1 < len(used) < 5

    config = AverageConfig(name="soup", runs=tuple(names), how="soup")
    arguments = config, runs, TrainInputs(shards, features), str(tmp_path / "soup")
    soup = average.run(*arguments)
    assert soup.counts["val_cosine"] == pytest.approx(best, abs=1e-4)
    rows = average.summary(soup)
    assert {row[0] for row in rows if row[2] == "yes"} == set(used)
    assert soup.counts["val_cosine"] >= max(row[1] for row in rows[:-1])
    expected = torch.stack([vectors(runs[name], shards) for name in used]).mean(0)
    torch.testing.assert_close(vectors(soup, shards), expected, atol=1e-5, rtol=0)
    assert average.run(*arguments) == soup
    with pytest.raises(UserError, match=r"holds another run.*\n.*average"):
        average.run(config.replace({"runs": names[:2]}), *arguments[1:])


def test_a_soup_of_fine_tunes_predicts_like_a_run(
    shards: Artifact, tiny_tower: str, tmp_path: Path
) -> None:
    runs = {
        f"run-{seed}": write_run(tmp_path / str(seed), shards, tiny_tower, FINETUNE, seed)
        for seed in range(3)
    }
    config = AverageConfig(name="soup", runs=tuple(runs), how="soup")
    soup = average.run(config, runs, TrainInputs(shards), str(tmp_path / "soup"))
    targets = matrix(shards.read_tables("val/", ["target"])["target"])
    score = mean_cosine(vectors(soup, shards).numpy(), targets)
    assert soup.counts["val_cosine"] == pytest.approx(score, abs=1e-5)
    assert score >= max(row[1] for row in average.summary(soup)[:-1])
    predictor = TrainedRun(soup, name="soup")
    predictor.check(shards)
    exported = export.run(ExportConfig(), predictor, shards, str(tmp_path / "export"))
    tower = open_tower(TowerConfig(weights=exported.path("tower")))
    head = torch.nn.Linear(32, 384)
    head.load_state_dict(safetensors.torch.load_file(exported.path("head.safetensors")))
    with torch.inference_mode():
        answers = head(tower(pixels_of(shards, "val")))
    torch.testing.assert_close(answers, vectors(soup, shards), atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_end_points_of_wise_ft_are_base_and_fine_tune(
    shards: Artifact, tiny_tower: str, tmp_path: Path, alpha: float
) -> None:
    start = write_run(tmp_path / "probe", shards, tiny_tower, PROBE, 7)
    changes = {"start_from": "probe", "start": start.fingerprint}
    tuned = write_run(tmp_path / "lora", shards, tiny_tower, FINETUNE, 8, **changes)
    config = AverageConfig(name="mixed", runs=("lora",), alpha=alpha)
    inputs = TrainInputs(shards, start=start)
    mixed = average.run(config, {"lora": tuned}, inputs, str(tmp_path / "mixed"))
    base = model_of(config_of(tiny_tower, FINETUNE))
    load_head(base, start)
    ends = base.eval()(pixels_of(shards, "val")).detach(), vectors(tuned, shards)
    assert not torch.allclose(*ends, atol=0.01)
    if alpha in (0.0, 1.0):
        torch.testing.assert_close(vectors(mixed, shards), ends[int(alpha)], atol=1e-5, rtol=0)
    names = [row[0] for row in average.summary(mixed)]
    assert names == ["base", "lora", "mixed"]
    assert json.loads(Path(mixed.path("config.json")).read_text())["name"] == "mixed"


def test_runs_that_have_no_mean_are_refused(
    shards: Artifact, tiny_tower: str, tmp_path: Path
) -> None:
    runs = {
        "a": write_run(tmp_path / "a", shards, tiny_tower, FINETUNE, 0),
        "b": write_run(tmp_path / "b", shards, tiny_tower, PlanConfig(nfz_rate=0.25), 1),
    }
    config = AverageConfig(name="soup", runs=("a", "b"), how="soup")
    with pytest.raises(UserError, match="b and a learned other tensors, such as tower"):
        average.run(config, runs, TrainInputs(shards), str(tmp_path / "soup"))
    alone = AverageConfig(name="mixed", runs=("a",))
    with pytest.raises(UserError, match="a started from no run"):
        average.run(alone, {"a": runs["a"]}, TrainInputs(shards), str(tmp_path / "mixed"))
    other = write_shards(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="was made from other shards"):
        average.run(config, runs, TrainInputs(other), str(tmp_path / "soup"))
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"how": "soup"}, r"runs is \('lora',\); allowed: two or more runs"),
        ({"runs": ("a", "b")}, r"runs is \('a', 'b'\); allowed: one run with how wise-ft"),
        ({"runs": ("a", "a"), "how": "soup"}, "allowed: two or more runs, each once"),
        ({"name": "lora"}, "name is 'lora'; allowed: another name"),
        ({"alpha": 1.5}, r"alpha is 1\.5; allowed: 0 to 1"),
    ],
)
def test_bad_settings_are_refused(changes: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        AverageConfig(**changes)
