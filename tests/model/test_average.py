import torch
from torch import nn

from img2prompt.config.train import HeadConfig, PlanConfig
from img2prompt.model.average import WeightAverage, other_weights
from img2prompt.model.prompt_model import build_prompt_model, learned_state, learned_tensors

DECAY = 0.8


def model_of(width: int = 0) -> nn.Module:
    return build_prompt_model(None, 3, PlanConfig(), HeadConfig(width=width), seed=0)


def fill(model: nn.Module, value: float) -> None:
    for tensor in learned_tensors(model).values():
        tensor.fill_(value)


def averages(values: list[float], average: WeightAverage, model: nn.Module) -> list[float]:
    """The average of the bias after each step whose weights are `values`."""
    found = []
    for value in values:
        fill(model, value)
        average.update(model)
        found.append(average.weights["head.bias"][0].item())
    return found


def test_the_average_is_the_one_computed_by_hand() -> None:
    """Weights of the newest step: 1, 9/10, 9/11, ..., but never below 1 - decay."""
    found = averages([1.0, 2.0, 4.0], WeightAverage(0.999), model_of())
    expected = [1.0, 0.1 * 1 + 0.9 * 2, 2 / 11 * 1.9 + 9 / 11 * 4]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
    low = averages([1.0, 2.0, 4.0], WeightAverage(0.05), model_of())
    low_expected = [1.0, 0.05 * 1 + 0.95 * 2, 0.05 * 1.95 + 0.95 * 4]
    torch.testing.assert_close(torch.tensor(low), torch.tensor(low_expected))


def test_after_the_warm_up_the_decay_is_constant() -> None:
    average, model = WeightAverage(DECAY), model_of()
    before = averages([0.0] * 100, average, model)[-1]
    assert before == 0
    found = averages([1.0] * 5, average, model)
    expected = [1 - DECAY**step for step in range(1, 6)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_statistics_of_batchnorm_are_averaged_and_its_counter_copied() -> None:
    model, average = model_of(width=4), WeightAverage(DECAY)
    for step in (1, 2):
        fill(model, step)
        average.update(model)
    assert average.weights.keys() == learned_state(model).keys()
    torch.testing.assert_close(average.weights["head.1.running_var"], torch.full((4,), 1.9))
    counter = average.weights["head.1.num_batches_tracked"]
    assert (counter.item(), counter.dtype) == (2, torch.int64)


def test_a_restored_average_continues_exactly() -> None:
    model, whole, first = model_of(), WeightAverage(DECAY), WeightAverage(DECAY)
    values = torch.rand(30).tolist()
    expected = averages(values, whole, model)
    averages(values[:11], first, model)
    rest = WeightAverage(DECAY)
    rest.load({name: tensor.clone() for name, tensor in first.state().items()})
    assert averages(values[11:], rest, model) == expected[11:]


def test_loading_copies() -> None:
    average = WeightAverage(DECAY)
    averages([1.0], average, model_of())
    state = {name: tensor.clone() for name, tensor in average.state().items()}
    restored = WeightAverage(DECAY)
    restored.load(state)
    averages([9.0], restored, model_of())
    assert state["weights/head.bias"][0] == 1


def test_other_weights_are_used_in_the_block_only() -> None:
    model = model_of(width=4).eval()
    own, inputs = learned_state(model), torch.rand(5, 3)
    own = {name: tensor.clone() for name, tensor in own.items()}
    other = {name: torch.full_like(tensor, 2) for name, tensor in own.items()}
    before = model(inputs)
    with other_weights(model, other):
        assert all(torch.equal(learned_state(model)[name], other[name]) for name in other)
        changed = model(inputs)
    assert not torch.allclose(changed, before)
    assert all(torch.equal(learned_state(model)[name], own[name]) for name in own)
    assert torch.equal(model(inputs), before)
