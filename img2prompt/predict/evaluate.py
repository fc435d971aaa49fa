"""How good runs are on a held-out split, beside three baselines.

shards/ + features/ + runs/ -> evaluation/: `metrics.json` (mean cosine with a 95 % interval, over
all and by source) and `scores.parquet` (each picture's cosine under each system).
"""

import dataclasses
import functools

import numpy as np
import pyarrow as pa

from img2prompt.artifact import Artifact, Draft
from img2prompt.config.predict import EvaluateConfig
from img2prompt.data.shards import FeatureRows
from img2prompt.data.vectors import matrix
from img2prompt.distributed.actors import forward_split
from img2prompt.model.prompt_model import load_prompt_model
from img2prompt.predict.metrics import by_source, cosine, mean_cosine_interval
from img2prompt.predictors.neighbours import knn_targets
from img2prompt.prepare.run import PreparedData
from img2prompt.workspace import Stage

SCORES = "scores.parquet"
MEAN = "mean vector"
NEIGHBOURS = "nearest neighbours"


def run(
    config: EvaluateConfig,
    prepared: PreparedData,
    features: Artifact,
    runs: dict[str, Artifact],
    out: str,
) -> Artifact:
    """Score the baselines and each run on `config.split`; `runs` are finished runs by name."""
    inputs = {
        "shards": prepared.shards.fingerprint,
        "features": features.fingerprint,
        **{f"run {name}": run.fingerprint for name, run in runs.items()},
    }
    check = functools.partial(_check, prepared.shards, features, runs)
    draft = Draft.open(out, Stage.EVALUATION, config, inputs, check)
    if finished := draft.finished():
        return finished
    predicted = _baselines(config, prepared.shards, features)
    for name, trained in runs.items():
        predicted[name] = forward_split(
            prepared.shards,
            config.split,
            functools.partial(load_prompt_model, trained),
            config.batch_size,
        )[1]
    answers = _answers(prepared, config.split)
    target = matrix(answers["target"])
    scores = {name: cosine(vectors, target) for name, vectors in predicted.items()}
    table = answers.drop_columns(["target"])
    for name, values in scores.items():
        table = table.append_column(name, pa.array(values))
    draft.write_table(SCORES, table)
    return draft.publish(split=config.split, systems=_summaries(config, answers, scores))


def _check(shards: Artifact, features: Artifact, runs: dict[str, Artifact]) -> None:
    """Refuse (UserError) what was made from other data, or a run whose tower is not there."""
    features.require_input("shards", shards)
    for trained in runs.values():
        trained.require_input("shards", shards)
        load_prompt_model(trained)


def _baselines(
    config: EvaluateConfig, shards: Artifact, features: Artifact
) -> dict[str, np.ndarray]:
    """Vectors (N, 384) of the mean training vector and of nearest neighbours in feature space."""
    train = FeatureRows(features, shards, "train")
    held_out = FeatureRows(features, shards, config.split)
    mean = train.targets.mean(axis=0)
    return {
        MEAN: np.broadcast_to(mean, held_out.targets.shape),
        NEIGHBOURS: knn_targets(
            train.features, train.targets, held_out.features, config.neighbours
        ),
    }


def _answers(prepared: PreparedData, split: str) -> pa.Table:
    """id, source, group and target of each picture of the split, in the order of the shards."""
    rows = prepared.shards.read_tables(f"{split}/", ["id", "prompt_id", "source", "target"])
    groups = prepared.groups.read_tables("rows", ["prompt_id", "group"])
    group = dict(zip(groups["prompt_id"].to_pylist(), groups["group"].to_pylist(), strict=True))
    labels = pa.array([group[prompt] for prompt in rows["prompt_id"].to_pylist()])
    return rows.append_column("group", labels).drop_columns(["prompt_id"])


def _summaries(
    config: EvaluateConfig, answers: pa.Table, scores: dict[str, np.ndarray]
) -> dict[str, dict]:
    clusters = answers["group"].to_numpy()
    sources = answers["source"].to_pylist()
    options = {"samples": config.bootstrap, "seed": config.seed}
    return {
        name: {
            "all": dataclasses.asdict(mean_cosine_interval(values, clusters, **options)),
            "by_source": {
                source: dataclasses.asdict(score)
                for source, score in by_source(values, clusters, sources, **options).items()
            },
        }
        for name, values in scores.items()
    }


def summary(evaluation: Artifact) -> list[list[object]]:
    """Rows for a table: each system, over all and by source where there are several."""
    rows: list[list[object]] = []
    for name, scores in evaluation.counts["systems"].items():
        rows.append(_row(name, scores["all"]))
        if len(scores["by_source"]) > 1:
            rows += [_row(f"  {source}", score) for source, score in scores["by_source"].items()]
    return rows


def _row(name: str, score: dict) -> list[object]:
    interval = f"{score['low']:.4f} to {score['high']:.4f}"
    return [name, score["mean"], interval, score["rows"]]
