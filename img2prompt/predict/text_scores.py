"""Scores of readable prompts where the true prompts are known."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from img2prompt.artifact import Artifact
from img2prompt.config.predict import EvaluateConfig
from img2prompt.data.vectors import matrix
from img2prompt.model.text import PromptEncoder
from img2prompt.predict.metrics import cosine, mean_cosine_interval
from img2prompt.predict.prompts import KnownPrompts, ReadablePrompts


def score_texts(
    config: EvaluateConfig,
    known: KnownPrompts,
    pictures: pa.Table,
    vectors: Mapping[str, np.ndarray],
    encoder: str = "",
) -> pa.Table:
    """Return the readable prompts of each picture for each predictor, with their cosines.

    Args:
        config: kinds of prompts.
        known: training prompts.
        pictures: id and target of N pictures.
        vectors: predicted vectors (N, 384) by predictor, one or more.
        encoder: folder of the encoder of the targets; empty: its installed package.

    Returns:
        Rows of system, id, kind, prompt, cosine (to the predicted vector) and true_cosine (to the
        true prompt's vector), for each system and kind in the order of the pictures.
    """
    readable = ReadablePrompts(known, config.texts, 1, config.compose, encoder, config.csls)
    prompts, target = PromptEncoder(encoder), matrix(pictures["target"])
    tables = []
    for name, predicted in vectors.items():
        texts = readable.find(pictures["id"].to_pylist(), predicted)
        for kind in config.texts:
            table = texts.filter(pc.field("kind") == kind)
            true = cosine(prompts.encode(table["prompt"].to_pylist()), target)
            table = table.append_column("true_cosine", pa.array(true, pa.float32()))
            tables.append(table.append_column("system", pa.array([name] * len(table))))
    columns = ["system", "id", "kind", "prompt", "cosine", "true_cosine"]
    return pa.concat_tables(tables).select(columns)


def summarise_texts(clusters: np.ndarray, texts: pa.Table) -> dict[str, dict[str, dict]]:
    """Return, by system and kind, the mean cosine to the vectors, and the score of the texts.

    `clusters` are labels (N,) of the pictures, for the intervals.
    """
    summaries: dict[str, dict[str, dict]] = {}
    for system in texts["system"].unique().to_pylist():
        for kind in texts["kind"].unique().to_pylist():
            rows = texts.filter((pc.field("system") == system) & (pc.field("kind") == kind))
            true = rows["true_cosine"].to_numpy().astype(np.float64)
            score = mean_cosine_interval(true, clusters)
            summaries.setdefault(system, {})[kind] = {
                "predicted": float(rows["cosine"].to_numpy().mean()),
                "true": dataclasses.asdict(score),
            }
    return summaries


def texts_summary(evaluation: Artifact) -> list[list[object]]:
    """Return table rows: cosines of each predictor's readable prompts, by kind."""
    return [
        [
            f"{system}, {kind}",
            score["predicted"],
            score["true"]["mean"],
            f"{score['true']['low']:.4f} to {score['true']['high']:.4f}",
        ]
        for system, kinds in evaluation.counts.get("texts", {}).items()
        for kind, score in kinds.items()
    ]
