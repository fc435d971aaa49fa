"""Score probes on all pictures of a small data set by grouped cross-validation, source by source.

Features must be cached. Near duplicates are kept (`--group.duplicate-cosine 1`): groups of similar
prompts share a fold, so they cannot help each other. Each seed divides the groups into other folds,
and is also the seed of training. A row's score is the mean over all pictures and seeds, its spread
the largest difference between seeds. Seconds are wall-clock for all folds of one seed.

    python jobs/prepare.py pictures --sources.0.path PATH --group.duplicate-cosine 1 --out out/real
    python jobs/features.py lite2 --out out/real
    python tests/benchmarks/real_pictures.py --out out/real

Two sizes side by side: prepare with `--shard.size 384` and use the preset `lite2-sizes`.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import tyro

from img2prompt import cli, presets
from img2prompt.artifact import Artifact
from img2prompt.config.predict import EvaluateConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import TrainConfig
from img2prompt.data.vectors import matrix
from img2prompt.draft import Draft
from img2prompt.predict.crossvalidate import CrossValidation
from img2prompt.predict.evaluate import scored_pictures
from img2prompt.predict.metrics import cosine
from img2prompt.predictors.base import PredictorSpec
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.neighbours import NearestNeighbours
from img2prompt.predictors.trained import TrainedRun
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.storage import join
from img2prompt.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Options:
    """The data set and what is scored on it."""

    out: str
    """Folder with a prepared data set and its features."""
    folds: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 2048
    """Hidden units of the wide head."""
    dropout: float = 0.3
    """Dropout of the wide head."""


def probes(options: Options, features: Artifact) -> dict[str, TrainConfig]:
    """Return the settings of the probes by their names in the table."""
    tower = TowerConfig.from_json(json.dumps(features.config["tower"]))
    adamw = replace(presets.heads_lite2(), tower=tower)
    wide = {"head.width": options.width, "head.dropout": options.dropout, "optim.batch_size": 64}
    return {
        "ridge": presets.in_closed_form(adamw),
        "AdamW, linear": adamw,
        f"AdamW, {options.width} wide": adamw.replace(wide),
    }


def systems(
    options: Options, prepared: PreparedData, features: Artifact, folder: str, seed: int
) -> Iterator[PredictorSpec]:
    yield MeanVector(prepared.shards, name="mean vector")
    yield NearestNeighbours(features, prepared.shards, 5, name="nearest neighbours")
    for number, (name, config) in enumerate(probes(options, features).items()):
        uri = join(folder, f"{number}-{seed}")
        run = Draft.open(uri, "train", replace(config, seed=seed), {}).publish()
        yield TrainedRun(run, name=name)


def score(
    options: Options, prepared: PreparedData, features: Artifact, pictures: pa.Table, seed: int
) -> dict[str, tuple[np.ndarray, float]]:
    """Return each system's cosines (N,) and seconds, with the folds of one seed."""
    config = EvaluateConfig(folds=options.folds, seed=seed)
    folds = CrossValidation(config, prepared, features, pictures)
    target, scores = matrix(pictures["target"]), {}
    with tempfile.TemporaryDirectory() as folder:
        for spec in systems(options, prepared, features, folder, seed):
            began = time.perf_counter()
            cosines = cosine(folds.predict(spec), target)
            scores[spec.name] = cosines, time.perf_counter() - began
    return scores


def run(options: Options) -> dict[str, float]:
    """Score and print; return each system's mean cosine over all pictures and seeds."""
    prepared = PreparedData.load(options.out)
    features = Workspace(options.out).open_features()
    pictures = scored_pictures(prepared, ("train", "val", "test"))
    source = np.array(pictures["source"].to_pylist())
    names = sorted(set(source.tolist()))
    scored = [score(options, prepared, features, pictures, seed) for seed in options.seeds]
    rows, means = [], {}
    for system in scored[0]:
        cosines = np.stack([own[system][0] for own in scored])
        seconds = float(np.mean([own[system][1] for own in scored]))
        means[system] = float(cosines.mean())
        own = [f"{cosines[:, source == name].mean():.3f}" for name in names]
        spread = f"{np.ptp(cosines.mean(axis=1)):.3f}"
        rows.append([system, f"{means[system]:.3f}", spread, *own, f"{seconds:.1f}"])
    columns = ["", "all", "spread", *(f"{n} ({(source == n).sum()})" for n in names), "seconds"]
    cli.show(f"{len(source)} pictures, {options.folds} folds", columns, rows)
    return means


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
