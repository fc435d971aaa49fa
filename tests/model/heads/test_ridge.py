"""Ridge in closed form, against scikit-learn and an ordinary least-squares solver."""

from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import nn

from img2prompt.model.heads.ridge import RidgeHeads, RidgeSums, solve
from img2prompt.model.loss import cosines

FEATURES, OUTPUTS = 12, 5
STRENGTHS = (1e-3, 0.1, 10.0)


def data(rows: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different means and deviations, and targets that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES)) * np.logspace(-2, 2, FEATURES) + 20 * np.arange(FEATURES)
    y = x @ rng.normal(size=(FEATURES, OUTPUTS)) / 50 + rng.normal(size=(rows, OUTPUTS)) + 3
    return x, y


def predictions(heads: RidgeHeads, x: np.ndarray) -> np.ndarray:
    """Predictions (S, B, E)."""
    return x @ heads.weight + heads.bias[:, None]


def by_lstsq(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """Predictions (B, E) of ridge as least squares with rows of penalties (Tikhonov)."""
    varies = x.std(axis=0) > 0
    z = (x[:, varies] - x[:, varies].mean(axis=0)) / x[:, varies].std(axis=0)
    penalty = np.sqrt(strength * len(x)) * np.eye(z.shape[1])
    above, below = y - y.mean(axis=0), np.zeros((z.shape[1], y.shape[1]))
    weight = np.linalg.lstsq(np.vstack([z, penalty]), np.vstack([above, below]))[0]
    return z @ weight + y.mean(axis=0)


def test_heads_equal_those_of_scikit_learn() -> None:
    x, y = data()
    heads = solve(RidgeSums.over(x, y), STRENGTHS)
    z = StandardScaler().fit_transform(x)
    for strength, ours in zip(STRENGTHS, predictions(heads, x), strict=True):
        reference = Ridge(alpha=strength * len(x)).fit(z, y).predict(z)
        np.testing.assert_allclose(ours, reference, atol=1e-9)


def test_heads_equal_penalised_least_squares() -> None:
    x, y = data()
    heads = solve(RidgeSums.over(x, y), STRENGTHS)
    for strength, ours in zip(STRENGTHS, predictions(heads, x), strict=True):
        np.testing.assert_allclose(ours, by_lstsq(x, y, strength), atol=1e-9)


def test_a_constant_feature_gets_no_weight_and_changes_nothing() -> None:
    x, y = data()
    constant = np.hstack([x, np.full((len(x), 1), 3.1), np.zeros((len(x), 1))])
    plain, more = (solve(RidgeSums.over(each, y), STRENGTHS) for each in (x, constant))
    assert not more.weight[:, FEATURES:].any()
    np.testing.assert_allclose(more.weight[:, :FEATURES], plain.weight, atol=1e-9)
    np.testing.assert_allclose(more.bias, plain.bias, atol=1e-9)


def test_a_float16_feature_that_varies_by_its_smallest_step_is_not_constant() -> None:
    y = np.arange(40.0)[:, None] % 2
    x = np.float16(2) + np.float16(2**-9) * y.astype(np.float16)
    (ours,) = predictions(solve(RidgeSums.over(x, y), [1e-6]), x)
    np.testing.assert_allclose(ours, y, atol=1e-5)


def test_more_features_than_rows_have_a_solution() -> None:
    x, y = data(rows=7)
    heads = solve(RidgeSums.over(x, y), STRENGTHS)
    for strength, ours in zip(STRENGTHS, predictions(heads, x), strict=True):
        np.testing.assert_allclose(ours, by_lstsq(x, y, strength), atol=1e-8)


def test_repeated_features_share_a_weight() -> None:
    x, y = data()
    heads = solve(RidgeSums.over(np.hstack([x, x]), y), STRENGTHS)
    np.testing.assert_allclose(heads.weight[:, :FEATURES], heads.weight[:, FEATURES:], atol=1e-9)


def test_a_strong_penalty_predicts_the_mean_target() -> None:
    x, y = data()
    (ours,) = predictions(solve(RidgeSums.over(x, y), [1e12]), x)
    np.testing.assert_allclose(ours, np.broadcast_to(y.mean(axis=0), y.shape), atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 4, 60])
def test_parts_and_order_do_not_change_a_head(parts: int) -> None:
    x, y = data()
    whole = solve(RidgeSums.over(x, y), STRENGTHS)
    order = np.random.default_rng(parts).permutation(len(x))
    sums = reduce(add, [RidgeSums.over(x[p], y[p]) for p in np.array_split(order, parts)])
    assert sums.rows == len(x)
    np.testing.assert_allclose(predictions(solve(sums, STRENGTHS), x), predictions(whole, x))


def test_subtraction_leaves_rows_out() -> None:
    x, y = data()
    rest = RidgeSums.over(x, y) - RidgeSums.over(x[:20], y[:20])
    without, expected = (solve(sums, STRENGTHS) for sums in (rest, RidgeSums.over(x[20:], y[20:])))
    np.testing.assert_allclose(predictions(without, x), predictions(expected, x), atol=1e-9)


def test_sums_of_float16_features_are_exact() -> None:
    x, y = (array.astype(np.float16) for array in data(rows=1000))
    sums = RidgeSums.over(x, y)
    np.testing.assert_allclose(sums.x, x.astype(np.float64).sum(axis=0), rtol=1e-12)
    assert sums.xx.dtype == sums.xy.dtype == np.float64


def test_cosine_sums_equal_those_of_the_linear_layer() -> None:
    x, y = data()
    heads = solve(RidgeSums.over(x, y), STRENGTHS)
    for number, ours in enumerate(heads.cosine_sums(x, y)):
        layer = nn.Linear(FEATURES, OUTPUTS)
        layer.load_state_dict(heads.state(number))
        score = cosines(layer(torch.from_numpy(x).float()), torch.from_numpy(y)).sum().item()
        assert ours == pytest.approx(score, abs=1e-3)


def test_a_prediction_of_zero_scores_zero() -> None:
    heads = RidgeHeads(np.zeros((1, FEATURES, OUTPUTS)), np.zeros((1, OUTPUTS)))
    assert heads.cosine_sums(*data()) == 0
