import numpy as np
import pytest
import torch

from img2prompt.predictors.base import Answers, PredictorSpec, average_views


def random_vectors(rows: int, seed: int) -> np.ndarray:
    """Vectors of all lengths."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, 384)) * rng.uniform(0.1, 9, (rows, 1))).astype(np.float32)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"vectors": np.ones((2, 383))}, r"vectors have shape \(2, 383\); allowed: \(N, 384\)"),
        ({"texts": ["one"]}, "1 texts for 2 vectors"),
        ({"confidences": np.ones(3)}, r"confidences have shape \(3,\); allowed: \(2,\)"),
    ],
)
def test_answers_for_different_numbers_of_pictures_are_refused(parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Answers(**{"vectors": random_vectors(2, seed=0), **parts})


def test_the_mean_over_views_is_that_of_vectors_at_unit_length() -> None:
    views = [random_vectors(5, seed) for seed in range(3)]
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in views]
    averaged = average_views([Answers(vectors) for vectors in views])
    assert averaged.vectors.dtype == np.float32
    np.testing.assert_allclose(averaged.vectors, sum(unit) / 3, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_vector_without_a_direction_makes_its_own_answer_nan(value: float) -> None:
    views = [random_vectors(3, seed) for seed in range(2)]
    views[1][2] = value
    averaged = average_views([Answers(vectors) for vectors in views]).vectors
    assert np.isfinite(averaged).all(axis=1).tolist() == [True, True, False]


def test_a_single_view_is_returned_as_it_is() -> None:
    answers = Answers(random_vectors(3, seed=0), ["a", "b", "c"], np.ones(3))
    assert average_views([answers]) is answers


def test_text_and_confidence_come_from_the_most_confident_view() -> None:
    first = Answers(random_vectors(2, 0), ["plain 0", "plain 1"], np.array([0.9, 0.2]))
    second = Answers(random_vectors(2, 1), ["flip 0", "flip 1"], np.array([0.5, 0.7]))
    averaged = average_views([first, second])
    assert averaged.texts == ["plain 0", "flip 1"]
    assert averaged.confidences is not None
    np.testing.assert_array_equal(averaged.confidences, [0.9, 0.7])


def test_without_confidences_the_first_views_text_is_kept() -> None:
    views = [Answers(random_vectors(1, seed), [f"view {seed}"]) for seed in (0, 1)]
    assert average_views(views).texts == ["view 0"]


def test_a_spec_reads_pictures_unless_it_says_otherwise() -> None:
    class Pictures(PredictorSpec):
        def fingerprints(self): ...
        def check(self, shards): ...
        def load(self, device, *, compiled=False): ...

    spec = Pictures(name="pictures")
    assert not spec.reads_features(features=None)
    with pytest.raises(NotImplementedError, match="pictures does not answer from features"):
        spec.load_head(torch.device("cpu"))
