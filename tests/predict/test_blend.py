"""Weights of blends, on made-up vectors."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from img2prompt.config.predict import BlendConfig
from img2prompt.data.vectors import DIMENSIONS, unit_rows
from img2prompt.errors import UserError
from img2prompt.predict.blend import choose_weights, equal_weights, fit_weights
from img2prompt.predict.metrics import cosine

PICTURES = 240


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def targets(rng: np.random.Generator) -> np.ndarray:
    return unit_rows(rng.normal(size=(PICTURES, DIMENSIONS)))


def noisy(targets: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Unit vectors (N, D): the targets with noise of this length."""
    error = np.random.default_rng(seed).normal(size=targets.shape) / np.sqrt(DIMENSIONS)
    return unit_rows(targets + noise * error)


@pytest.fixture(scope="module")
def unequal(targets: np.ndarray) -> np.ndarray:
    """A good member and one that is much worse."""
    return np.stack([noisy(targets, 0.7, 1), noisy(targets, 2.5, 2)])


@pytest.fixture(scope="module")
def groups() -> np.ndarray:
    return np.arange(PICTURES) // 3


@pytest.mark.parametrize("scale", ["unit", "standard"])
def test_fitted_weights_have_the_highest_mean_cosine(unequal, targets, scale: str) -> None:
    def score(share: float) -> float:
        """The mean cosine for weights `share` and 1 - `share`, from the definition."""
        members = unequal
        if scale == "standard":
            mean, std = unequal.mean(axis=1, keepdims=True), unequal.std(axis=1, keepdims=True)
            members = (unequal - mean) / std * targets.std(axis=0) + targets.mean(axis=0)
        return float(cosine(share * members[0] + (1 - share) * members[1], targets).mean())

    fitted = fit_weights(unequal, targets, scale, "member")
    best = minimize_scalar(lambda share: -score(share), bounds=(0, 1), method="bounded")
    mean = cosine(fitted.apply(unequal), targets).mean()
    assert mean == pytest.approx(-best.fun, abs=1e-6)
    assert mean > cosine(equal_weights(unequal, targets, scale).apply(unequal), targets).mean()
    if scale == "unit":
        assert fitted.weights[0] == pytest.approx(np.full(DIMENSIONS, best.x), abs=1e-3)
        assert not fitted.offset.any()


def test_each_dimension_gets_the_member_that_knows_it(targets) -> None:
    half = np.arange(DIMENSIONS) < DIMENSIONS // 2
    members = [np.where(known, targets, noisy(targets, 1, 3)) for known in (half, ~half)]
    vectors = np.stack([unit_rows(member) for member in members])
    weights = fit_weights(vectors, targets, "unit", "dimension").weights
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=0).mean(), 1, atol=1e-5)
    shares = weights / weights.sum(axis=0)
    assert shares[0, half].mean() > 0.8
    assert shares[1, ~half].mean() > 0.8


def test_fitted_weights_are_taken_where_they_are_better(unequal, targets, groups) -> None:
    weights, scores = choose_weights(BlendConfig(), unequal, targets, groups)
    assert scores["fitted"]
    assert scores["fitted_gain"]["low"] > 0
    np.testing.assert_array_equal(
        weights.weights, fit_weights(unequal, targets, "unit", "member").weights
    )
    assert scores["blend"]["mean"] > scores["equal"]["mean"]
    good, bad = scores["members"]
    assert good["weight"] > 0.7
    assert good["alone"]["mean"] == pytest.approx(cosine(unequal[0], targets).mean())
    assert good["gain"]["low"] > 0.1
    assert 0 <= bad["gain"]["mean"] < 0.05


def test_equal_members_get_equal_weights(targets, groups) -> None:
    vectors = np.stack([noisy(targets, 1, seed) for seed in (5, 6, 7)])
    weights, scores = choose_weights(BlendConfig(), vectors, targets, groups)
    assert not scores["fitted"]
    assert scores["fitted_gain"]["low"] <= 0
    np.testing.assert_allclose(weights.weights, 1 / 3, atol=1e-7)
    assert scores["blend"] == scores["equal"]
    assert all(member["gain"]["low"] > 0 for member in scores["members"])


def test_many_weights_that_fit_noise_are_not_taken(targets, groups) -> None:
    vectors = np.stack([noisy(targets, 1, seed) for seed in (5, 6)])[:, :30]
    config = BlendConfig(per="dimension")
    _, scores = choose_weights(config, vectors, targets[:30], groups[:30])
    assert not scores["fitted"]


def test_a_single_group_is_enough_for_equal_weights(unequal, targets) -> None:
    _, scores = choose_weights(BlendConfig(), unequal, targets, np.zeros(PICTURES))
    assert not scores["fitted"]


def test_vectors_of_other_pictures_are_refused(unequal, targets, groups) -> None:
    with pytest.raises(ValueError, match="not for the same pictures"):
        choose_weights(BlendConfig(), unequal[:, 1:], targets, groups)
    with pytest.raises(ValueError, match="not for the same pictures"):
        choose_weights(BlendConfig(), unequal, targets, groups[1:])


@pytest.mark.parametrize("runs", [("probe",), ("lora", "lora")])
def test_a_blend_needs_two_members(runs: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"runs is .*allowed: two predictors or more, each once"):
        BlendConfig(runs=runs)
