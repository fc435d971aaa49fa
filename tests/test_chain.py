import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from img2prompt import chain
from img2prompt.config.base import without
from img2prompt.config.chain import ChainConfig
from img2prompt.config.predict import EvaluateConfig, PredictConfig
from img2prompt.config.prepare import (
    CleanConfig,
    FeaturesConfig,
    GroupConfig,
    IndexConfig,
    PrepareConfig,
    ShardConfig,
    TargetsConfig,
)
from img2prompt.config.train import TrainConfig
from img2prompt.errors import UserError
from img2prompt.predict import evaluate
from img2prompt.predict.submission import read_submission
from img2prompt.prepare import features
from img2prompt.train import preflight

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

FOLDERS = {
    "index": ("index", IndexConfig),
    "clean": ("clean", CleanConfig),
    "targets": ("targets", TargetsConfig),
    "groups": ("groups", GroupConfig),
    "shards": ("shards", ShardConfig),
    "features": ("features", FeaturesConfig),
    "runs/probe": ("train", TrainConfig),
    "runs/lora": ("train", TrainConfig),
    "evaluation": ("evaluation", EvaluateConfig),
    "samples-predictions": ("predictions", PredictConfig),
}
FREE = {
    "features": features.FREE,
    "runs/probe": preflight.FREE,
    "runs/lora": preflight.FREE,
    "samples-predictions": ("batch_size",),
}


def times(out: str) -> dict[str, int]:
    """Modification times of the stages' files."""
    return {
        str(path.relative_to(out)): path.stat().st_mtime_ns
        for folder in FOLDERS
        for path in sorted((Path(out) / folder).rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("folder", "expected"), FOLDERS.items())
def test_every_folder_contains_manifest_config_and_metrics(
    chained, folder: str, expected: tuple
) -> None:
    stage, kind = expected
    path = Path(chained.out) / folder
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["stage"], manifest["done"]) == (stage, True)
    config = kind.from_json((path / "config.json").read_text())
    # The manifest leaves out settings that do not change the result.
    assert manifest["config"] == without(json.loads(config.to_json()), FREE.get(folder, ()))
    metrics = json.loads((path / "metrics.json").read_text())
    assert metrics
    assert metrics == manifest["counts"]
    data = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    logs = {name for name in data if name.startswith(("tensorboard/", "metrics.jsonl"))}
    assert bool(logs) == (stage == "train")
    own = {"manifest.json", "config.json", "metrics.json"}
    assert data - logs - set(manifest["files"]) == own
    assert set(manifest["files"]) <= data


def test_out_contains_config_and_scores(chained) -> None:
    out = Path(chained.out)
    assert ChainConfig.from_json((out / "config.json").read_text()) == chained.config
    assert PrepareConfig.from_json((out / "prepare.json").read_text()) == chained.config.prepare
    metrics = (out / "metrics.json").read_text()
    assert metrics == (out / "evaluation" / "metrics.json").read_text()
    systems = json.loads(metrics)["systems"]
    assert list(systems) == [evaluate.MEAN, evaluate.NEIGHBOURS, "probe", "lora"]


def test_stages_have_the_fingerprints_of_their_inputs(chained) -> None:
    made, out = chained.made, Path(chained.out)
    runs = {
        name: json.loads((out / "runs" / name / "manifest.json").read_text())
        for name in ("probe", "lora")
    }
    for run in runs.values():
        assert run["inputs"]["shards"] == made.prepared.shards.fingerprint
    assert set(runs["probe"]["inputs"]) == {"tower", "shards", "features"}
    assert set(runs["lora"]["inputs"]) == {"tower", "shards", "start"}
    assert made.evaluation.inputs["run probe"] == runs["lora"]["inputs"]["start"]
    assert made.predictions.inputs["run"] == made.evaluation.inputs["run lora"]


def test_samples_are_test_pictures_with_their_prompts(chained) -> None:
    rows = chained.made.prepared.shards.read_tables("test/").to_pylist()
    last = len(rows) - 1
    shards = [rows[place] for place in (0, last // 3, 2 * last // 3, last)]
    folder = Path(chained.out) / "samples"
    with open(folder / "prompts.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["id"] for row in listed] == [row["id"] for row in shards]
    texts = chained.made.prepared.targets.read_tables("rows").to_pylist()
    prompt = {row["prompt_id"]: row["prompt"] for row in texts}
    for row, shard in zip(listed, shards, strict=True):
        picture = folder / row["picture"]
        assert picture.read_bytes() == shard["image"]
        assert Image.open(picture).size == (32, 32)
        assert row["prompt"] == prompt[shard["prompt_id"]]
    ids, _ = read_submission(str(Path(chained.out) / "samples-predictions" / "submission.csv"))
    assert ids == [Path(row["picture"]).stem for row in listed]
    table = chain.samples_summary(chained.made, str(folder))
    assert [row[0] for row in table[::2]] == [row["prompt"] for row in listed]
    assert all(-1 <= row[2] <= 1 for row in table)


def test_a_finished_chain_is_skipped(chained) -> None:
    before = times(chained.out)
    again = chain.run(chained.config, chained.out)
    assert again == chained.made
    assert times(chained.out) == before
    assert "runs/lora/model.safetensors" in before


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("prepare.sources", [{"kind": "scenes", "prompts": 91}], "sources"),
        ("prepare.clean.min_words", 2, "min_words: saved 1, requested 2"),
        ("prepare.group.seed", 5, "seed: saved 0, requested 5"),
        ("prepare.shard.encoding", "jpeg", "encoding: saved 'png', requested 'jpeg'"),
        ("features.precision", "fp32", "precision: saved 'auto', requested 'fp32'"),
        ("probe.optim.epochs", 5, r"optim\.epochs: saved 4, requested 5"),
        ("finetune.plan.lora_rank", 2, r"plan\.lora_rank: saved 4, requested 2"),
        ("evaluate.neighbours", 2, "neighbours: saved 3, requested 2"),
        ("predict.nearest", 1, "nearest: saved 3, requested 1"),
        ("samples", 3, r"inputs\.pictures"),
    ],
)
def test_a_changed_option_is_refused_and_nothing_is_lost(
    chained, option: str, value: object, named: str
) -> None:
    before = times(chained.out)
    changed = chained.config.replace({option: value})
    with pytest.raises(UserError, match=rf"(?s)holds another run.*{named}.*Give another --out"):
        chain.run(changed, chained.out)
    assert times(chained.out) == before
    out = Path(chained.out)
    assert ChainConfig.from_json((out / "config.json").read_text()) == chained.config
    assert PrepareConfig.from_json((out / "prepare.json").read_text()) == chained.config.prepare
    assert chain.run(chained.config, chained.out) == chained.made
