import numpy as np
import pytest
import torch

from img2prompt.model.loss import cosine_loss, cosines

RNG = np.random.default_rng(0)
PREDICTED = RNG.normal(size=(7, 384)) * RNG.uniform(0.01, 30, (7, 1))
TARGET = RNG.normal(size=(7, 384))


def reference(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    dots = (predicted * target).sum(axis=1)
    return dots / np.linalg.norm(predicted, axis=1) / np.linalg.norm(target, axis=1)


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(PREDICTED, dtype=torch.float32), torch.tensor(TARGET, dtype=torch.float32)


def test_cosines_are_numpys() -> None:
    found = cosines(*tensors())
    assert found.shape == (7,)
    np.testing.assert_allclose(found.numpy(), reference(PREDICTED, TARGET), atol=1e-6)


def test_the_loss_is_one_minus_the_mean_cosine() -> None:
    expected = 1 - reference(PREDICTED, TARGET).mean()
    assert cosine_loss(*tensors()).item() == pytest.approx(expected, abs=1e-6)
    assert cosine_loss(tensors()[1] * 3, tensors()[1]).item() == pytest.approx(0, abs=1e-6)
    assert cosine_loss(-tensors()[1], tensors()[1]).item() == pytest.approx(2, abs=1e-6)


def test_half_precision_is_scored_in_float32() -> None:
    predicted, target = tensors()
    found = cosines(predicted.bfloat16(), target)
    assert found.dtype == torch.float32
    rounded = predicted.bfloat16().float().numpy().astype(np.float64)
    np.testing.assert_allclose(found.numpy(), reference(rounded, TARGET), atol=1e-6)


def test_the_gradient_is_that_of_differences() -> None:
    predicted = torch.tensor(PREDICTED[:2], requires_grad=True)
    cosine_loss(predicted, torch.tensor(TARGET[:2])).backward()
    step = np.zeros_like(PREDICTED[:2])
    step[1, 5] = 1e-4
    rise = reference(PREDICTED[:2] + step, TARGET[:2]) - reference(PREDICTED[:2] - step, TARGET[:2])
    assert predicted.grad is not None
    assert predicted.grad[1, 5].item() == pytest.approx(-rise.mean() / 2e-4, rel=1e-3)


def test_a_zero_vector_scores_zero_and_keeps_the_loss_finite() -> None:
    predicted = torch.zeros(2, 384, requires_grad=True)
    loss = cosine_loss(predicted, tensors()[1][:2])
    assert loss.item() == 1
    loss.backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()
