"""Score predictors on a held-out split, or on all pictures by folds, beside two baselines.

shards/ + features/ + predictors -> evaluation/: `metrics.json` (mean cosine with a 95 % interval,
over all pictures and by source), `scores.parquet` (each picture's cosine for each predictor),
`report.html` (both as tables and charts) and, if asked for, `texts.parquet` (readable prompts with
their cosines to the predicted and the true vector).

Predictors that can answer from the cached features do so. The others see the pictures, up to four
of them in one pass: few pictures in this process, more through actors that hold the predictors. By
folds (`crossvalidate.py`), probes are trained anew, and all pictures are scored from the cache.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from img2prompt.artifact import Artifact
from img2prompt.config.predict import EvaluateConfig
from img2prompt.data.shards import SPLITS
from img2prompt.data.vectors import matrix, require_finite
from img2prompt.distributed.forward import ModelMaker, forward_split_in_process
from img2prompt.distributed.placement import few_pictures
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.predict.answers import AnswerColumns, read_answers
from img2prompt.predict.crossvalidate import CrossValidation, check_folds
from img2prompt.predict.metrics import by_source, cosine, mean_cosine_interval
from img2prompt.predict.prompts import phrases_fingerprint, training_prompts
from img2prompt.predict.text_scores import score_texts, summarise_texts
from img2prompt.predictors.base import (
    Answers,
    Predictor,
    PredictorSpec,
    average_views,
    concatenate,
)
from img2prompt.predictors.cached import has_views, read_view
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.neighbours import NearestNeighbours
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.report.evaluation import FEW_GROUPS, Results, page, ranking
from img2prompt.workspace import Stage

SCORES = "scores.parquet"
TEXTS = "texts.parquet"
REPORT = "report.html"
MEAN = "mean vector"
NEIGHBOURS = "nearest neighbours"
PREDICTORS_AT_ONCE = 4
"""Most predictors that are held at once: more read the pictures fewer times, and take more memory
(1.2 GB for a CLIP ViT-L/14 in float32)."""
FEATURES_AT_ONCE = 8192
PICTURE_COLUMNS = ("id", "source", "group")
"""Columns of SCORES beside those of the predictors."""


def run(
    config: EvaluateConfig,
    prepared: PreparedData,
    features: Artifact,
    predictors: Sequence[PredictorSpec],
    out: str,
) -> Artifact:
    """Score the baselines and the predictors on `config.split`, or by `config.folds`.

    Raises UserError for predictors or features of other shards, and for names used twice.
    """
    shards = prepared.shards
    baselines = (
        MeanVector(shards, name=MEAN),
        NearestNeighbours(features, shards, config.neighbours, name=NEIGHBOURS),
    )
    systems = (*baselines, *predictors)
    _check_names([spec.name for spec in systems])
    inputs = {
        "shards": shards.fingerprint,
        "features": features.fingerprint,
        **{f"{k} {spec.name}": v for spec in predictors for k, v in spec.fingerprints().items()},
        **phrases_fingerprint(config),
    }
    check = functools.partial(_check, config, shards, features, baselines, predictors)
    draft = Draft.open(out, Stage.EVALUATION, config, inputs, check)
    if finished := draft.finished():
        return finished
    pictures = scored_pictures(prepared, SPLITS if config.folds else (config.split,))
    target = matrix(pictures["target"])
    if config.folds:
        folds = CrossValidation(config, prepared, features, pictures)
        vectors = {spec.name: folds.predict(spec) for spec in systems}
    else:
        vectors = predict_split(config, shards, features, systems, pictures["id"].to_pylist())
    scores = {spec.name: cosine(vectors[spec.name], target) for spec in systems}
    table = pictures.select(PICTURE_COLUMNS)
    for name, values in scores.items():
        table = table.append_column(name, pa.array(values))
    draft.write_table(SCORES, table)
    summaries = _summaries(pictures, scores)
    draft.write_bytes(REPORT, _report(config, pictures, scores, summaries).encode())
    texts = {}
    if config.texts:
        own = {spec.name: vectors[spec.name] for spec in predictors}
        table = score_texts(config, training_prompts(prepared), pictures, own, prepared.encoder)
        draft.write_table(TEXTS, table)
        texts = summarise_texts(pictures["group"].to_numpy(), table)
    return draft.publish(split=config.scored, folds=config.folds, systems=summaries, texts=texts)


def _check_names(names: Sequence[str]) -> None:
    """Refuse (UserError) a predictor whose column of scores would have another column's name."""
    columns = [*PICTURE_COLUMNS, *names]
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise UserError(
            f"predictors have the names {list(names)}; allowed: names that differ from each other "
            f"and from {', '.join(PICTURE_COLUMNS)} (repeated: {', '.join(repeated)})"
        )


def _check(
    config: EvaluateConfig,
    shards: Artifact,
    features: Artifact,
    baselines: Sequence[PredictorSpec],
    predictors: Sequence[PredictorSpec],
) -> None:
    """Refuse (UserError) what was made from other shards, or cannot be loaded."""
    features.require_input("shards", shards)
    if config.folds:
        check_folds(config, features, predictors)
    # Baselines on cached features do not need the tower that made them.
    streamed = [spec for spec in baselines if not _uses_cache(config, features, spec)]
    for spec in (*streamed, *predictors):
        spec.check(shards)


def _uses_cache(config: EvaluateConfig, features: Artifact, spec: PredictorSpec) -> bool:
    return has_views(features, config.views) and spec.reads_features(features)


def predict_split(
    config: EvaluateConfig,
    shards: Artifact,
    features: Artifact,
    systems: Sequence[PredictorSpec],
    ids: list[str],
) -> dict[str, np.ndarray]:
    """Return vectors (N, 384) for the pictures `ids` of the split, by predictor.

    Raises:
        UserError: an answer is non-finite.
    """
    cached = [spec for spec in systems if _uses_cache(config, features, spec)]
    streamed = [spec for spec in systems if not _uses_cache(config, features, spec)]
    vectors = _from_features(config, features, cached, ids)
    vectors |= _from_pictures(config, shards, streamed, ids)
    for name, answers in vectors.items():
        require_finite(answers, ids, f"answers of {name}")
    return vectors


def _from_features(
    config: EvaluateConfig, features: Artifact, systems: Sequence[PredictorSpec], ids: list[str]
) -> dict[str, np.ndarray]:
    """Answer from the cached features, in this process."""
    views = []
    for view in config.views if systems else ():
        view_ids, rows = read_view(features, config.split, view)
        assert view_ids == ids, "the features are those of the shards"
        views.append(torch.from_numpy(rows).float())
    vectors = {}
    for spec in systems:
        head = spec.load_head(torch.device("cpu"))
        with torch.inference_mode():
            answers = [_in_blocks(head, rows) for rows in views]
        vectors[spec.name] = average_views(answers).vectors
    return vectors


def _in_blocks(head: Predictor, rows: torch.Tensor) -> Answers:
    """Answer for features (N, D) a block at a time: a wide head needs memory for each row."""
    return concatenate([head.predict(block) for block in rows.split(FEATURES_AT_ONCE)])


def _from_pictures(
    config: EvaluateConfig, shards: Artifact, systems: Sequence[PredictorSpec], ids: list[str]
) -> dict[str, np.ndarray]:
    """Answer from the pictures, in one pass for each few predictors, which an actor holds."""
    vectors: dict[str, np.ndarray] = {}
    for start in range(0, len(systems), PREDICTORS_AT_ONCE):
        held = systems[start : start + PREDICTORS_AT_ONCE]
        make_model = functools.partial(AnswerColumns, held, config.views)
        table = _forward(config, shards, make_model)
        assert table["id"].to_pylist() == ids
        vectors |= {spec.name: read_answers(table, spec.name).vectors for spec in held}
    return vectors


def _forward(config: EvaluateConfig, shards: Artifact, make_model: ModelMaker) -> pa.Table:
    """Return `id` and the model's columns for all pictures of the split, in the shards' order."""
    if not needs_cluster(config, shards):
        return forward_split_in_process(shards, config.split, make_model, config.batch_size)
    from img2prompt.distributed.actors import Pool, forward_split

    pool = Pool(make_model=make_model, batch_size=config.batch_size)
    return forward_split(shards, config.split, pool)


def needs_cluster(config: EvaluateConfig, shards: Artifact) -> bool:
    """Return True unless the split has few pictures, which are answered for in this process.

    Folds are scored in this process in any case.
    """
    return config.folds == 0 and not few_pictures(shards.counts[config.split])


def scored_pictures(prepared: PreparedData, splits: Sequence[str]) -> pa.Table:
    """Return id, prompt_id, source, target and group of each picture, in the shards' order."""
    columns = ["id", "prompt_id", "source", "target"]
    tables = [prepared.shards.read_tables(f"{split}/", columns) for split in splits]
    rows = pa.concat_tables(tables)
    groups = prepared.groups.read_tables("rows", ["prompt_id", "group"])
    group = dict(zip(groups["prompt_id"].to_pylist(), groups["group"].to_pylist(), strict=True))
    labels = pa.array([group[prompt] for prompt in rows["prompt_id"].to_pylist()])
    return rows.append_column("group", labels)


def _summaries(pictures: pa.Table, scores: dict[str, np.ndarray]) -> dict[str, dict]:
    """Return each predictor's mean cosine and interval, over all pictures and by source."""
    clusters = pictures["group"].to_numpy()
    sources = pictures["source"].to_pylist()
    return {
        name: {
            "all": dataclasses.asdict(mean_cosine_interval(values, clusters)),
            "by_source": {
                source: dataclasses.asdict(score)
                for source, score in by_source(values, clusters, sources).items()
            },
        }
        for name, values in scores.items()
    }


def _report(
    config: EvaluateConfig,
    pictures: pa.Table,
    scores: dict[str, np.ndarray],
    summaries: dict[str, dict],
) -> str:
    """Return the page of the evaluation.

    Differences of systems get intervals of their own: all systems answer for the same pictures,
    so a difference is more certain than the two scores.
    """
    clusters = pictures["group"].to_numpy()
    best = ranking(summaries)[0]
    leads = {
        name: dataclasses.asdict(mean_cosine_interval(scores[best] - values, clusters, limit=2.0))
        for name, values in scores.items()
        if name != best
    }
    groups = len(np.unique(clusters))
    return page(Results(config.scored, groups, MEAN, summaries, leads, scores, config.folds))


SUMMARY = ("system", "mean cosine", "95 % interval", "pictures", "prompt groups")
"""Columns of `summary`."""


def summary(evaluation: Artifact) -> list[list[object]]:
    """Return table rows: each predictor's score, over all and by source where there are several."""
    rows: list[list[object]] = []
    for name, scores in evaluation.counts["systems"].items():
        rows.append(_row(name, scores["all"]))
        if len(scores["by_source"]) > 1:
            rows += [_row(f"  {source}", score) for source, score in scores["by_source"].items()]
    return rows


def _row(name: str, score: dict) -> list[object]:
    interval = f"{score['low']:.4f} to {score['high']:.4f}"
    few = " (few prompts)" if score["groups"] < FEW_GROUPS else ""
    return [name, score["mean"], interval + few, score["rows"], score["groups"]]
