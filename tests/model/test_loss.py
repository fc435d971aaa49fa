import numpy as np
import pytest
import torch

from img2prompt.model.loss import (
    angular_loss,
    cosine_loss,
    cosines,
    info_nce_loss,
    negative_loss,
    squared_error,
)

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


def test_the_angular_loss_is_the_angle_over_pi() -> None:
    expected = np.arccos(reference(PREDICTED, TARGET)).mean() / np.pi
    assert angular_loss(*tensors()).item() == pytest.approx(expected, abs=1e-6)
    assert angular_loss(tensors()[1] * 3, tensors()[1]).item() == pytest.approx(0, abs=1e-6)
    assert angular_loss(-tensors()[1], tensors()[1]).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("factor", [2.0, -2.0, 0.0, 1e-6])
def test_the_gradient_of_the_angle_is_finite_everywhere(factor: float) -> None:
    predicted = (factor * tensors()[1]).requires_grad_()
    angular_loss(predicted, tensors()[1]).backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()


def test_the_squared_error_is_torchs() -> None:
    expected = ((PREDICTED - TARGET) ** 2).mean()
    assert squared_error(*tensors()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.5])
def test_the_negative_loss_is_torchs_cosine_embedding_loss(margin: float) -> None:
    predicted, prompts = tensors()[0], tensors()[1][:5]
    predicted[2] = prompts[1] + 0.1 * predicted[2] / predicted[2].norm()
    own = torch.tensor([0, 4, 0, 3, 2, 1, 1])
    others = prompts[[1, 0, 1, 4, 3, 2, 2]]
    expected = torch.nn.CosineEmbeddingLoss(margin=margin)(predicted, others, -torch.ones(7))
    found = negative_loss(predicted, prompts, own, margin)
    assert found.item() > 0.05
    torch.testing.assert_close(found, expected)


def test_a_batch_of_one_prompt_has_no_negatives() -> None:
    predicted = tensors()[0].requires_grad_()
    loss = negative_loss(predicted, tensors()[1][:1], torch.zeros(7, dtype=torch.long), 0.5)
    loss.backward()
    assert (loss.item(), predicted.grad.abs().sum().item()) == (0, 0)


def test_info_nce_is_the_logarithm_of_a_softmax() -> None:
    own = np.array([0, 4, 0, 3, 2, 1, 1])
    lengths = [np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (PREDICTED, TARGET)]
    powers = np.exp(((PREDICTED / lengths[0]) @ (TARGET / lengths[1])[:5].T) / 0.2)
    expected = -np.log(powers[np.arange(7), own] / powers.sum(axis=1)).mean()
    predicted, prompts = tensors()[0], tensors()[1][:5]
    found = info_nce_loss(predicted, prompts, torch.from_numpy(own), 0.2)
    assert found.item() == pytest.approx(expected, abs=1e-6)
    alone = info_nce_loss(predicted, prompts[:1], torch.zeros(7, dtype=torch.long), 0.2)
    assert alone.item() == 0
