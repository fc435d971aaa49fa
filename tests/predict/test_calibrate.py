"""Confidence heads on made-up signals."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.linear_model import Ridge

from img2prompt.config.predict import CalibrateConfig
from img2prompt.predict.calibrate import BINS, PENALTY, fit_head, fit_novelty, reliability
from img2prompt.predictors.confidence import SIGNALS

PICTURES = 400
KNOWN = np.zeros(PICTURES, bool)


@pytest.fixture(scope="module")
def signals() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(PICTURES, len(SIGNALS))) * rng.uniform(0.01, 3, len(SIGNALS)) + 5
    rows[:, 3] = 0.25  # says nothing
    return rows


@pytest.fixture(scope="module")
def cosines(signals: np.ndarray) -> np.ndarray:
    scaled = (signals - signals.mean(axis=0)) / signals.std(axis=0).clip(1e-9)
    noise = np.random.default_rng(1).normal(size=PICTURES) * 0.03
    return 0.6 + 0.1 * scaled[:, 4] - 0.05 * scaled[:, 0] + noise


def test_the_head_equals_sklearns_ridge(signals, cosines) -> None:
    std = signals.std(axis=0)
    scaled = (signals - signals.mean(axis=0)) / np.where(std > 0, std, 1)
    expected = Ridge(alpha=PENALTY).fit(scaled, cosines).predict(scaled)
    head = fit_head(signals, cosines)
    inside = (expected > cosines.min()) & (expected < cosines.max())
    np.testing.assert_allclose(head.apply(signals)[inside], expected[inside], atol=1e-5)
    assert (head.low, head.high) == (cosines.min(), cosines.max())


def test_confidences_stay_in_the_range_of_the_fit(signals, cosines) -> None:
    far = fit_head(signals, cosines).apply(signals * 100)
    assert far.min() >= np.float32(cosines.min())
    assert far.max() <= np.float32(cosines.max())


def test_reliability_of_left_out_folds(signals, cosines) -> None:
    groups = np.arange(PICTURES) // 4
    result = reliability(CalibrateConfig(), signals, cosines, groups, KNOWN)
    assert result["error"] < 0.03
    assert result["rank_correlation"] > 0.9
    assert abs(result["rank_correlation_nearest"]) < 0.2
    assert [own["pictures"] for own in result["bins"]] == [PICTURES // BINS] * BINS
    for own in result["bins"]:
        assert own["low"] <= own["confidence"] <= own["high"]
        assert own["cosine"] == pytest.approx(own["confidence"], abs=0.01)
    assert result["bins"][0]["cosine"] < result["bins"][-1]["cosine"] - 0.2


def test_reliability_is_that_of_the_served_confidence(signals, cosines) -> None:
    """Pictures that count as novel have the lowest confidence, however good their signals."""
    groups, best = np.arange(PICTURES), np.argsort(cosines)[-40:]
    novel = KNOWN.copy()
    novel[best] = True
    result = reliability(CalibrateConfig(), signals, cosines, groups, novel)
    plain = reliability(CalibrateConfig(), signals, cosines, groups, KNOWN)
    assert result["rank_correlation"] < plain["rank_correlation"] - 0.2
    assert result["bins"][0]["cosine"] > plain["bins"][0]["cosine"] + 0.1
    assert result["bins"][0]["low"] == pytest.approx(cosines.min())


def test_a_picture_is_never_in_the_fit_of_its_confidence(signals) -> None:
    """Cosines that only the group tells: left-out folds cannot know them."""
    groups = np.arange(PICTURES) // 40
    own = np.random.default_rng(2).normal(size=10)[groups]
    leaking = signals.copy()
    leaking[:, 5] = groups * 1.0
    result = reliability(CalibrateConfig(folds=10), leaking, own, groups, KNOWN)
    assert result["rank_correlation"] < 0.5


def test_constant_cosines_and_few_pictures(signals) -> None:
    result = reliability(CalibrateConfig(), signals[:3], np.full(3, 0.5), np.zeros(3), KNOWN[:3])
    assert result["rank_correlation"] == 0
    assert [own["pictures"] for own in result["bins"]] == [1, 1, 1]
    assert result["error"] == pytest.approx(0, abs=1e-6)


def test_novelty_is_the_mahalanobis_distance() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) + 3
    inverse, mean = np.linalg.inv(np.cov(features, rowvar=False)), features.mean(axis=0)
    expected = [mahalanobis(row, mean, inverse) for row in features]
    novelty = fit_novelty([features[:70], features[70:]])
    np.testing.assert_allclose(novelty.distances(features), expected, rtol=1e-6)
    flat = np.hstack([features, np.full((200, 1), 2.0)])
    assert np.isfinite(fit_novelty([flat]).distances(flat)).all()
    assert fit_novelty([flat]).distances(flat[:1] + np.eye(6)[5:])[0] > 100
