"""Averages of weights over training, and running a model with them.

An average of the weights of many steps is less noisy than the last step's at rates that are still
high (Polyak & Juditsky 1992, "Acceleration of stochastic approximation by
averaging"). The exponential moving average is that of timm's `ModelEmaV3`, with the polynomial
warm-up of Shamir & Zhang (arXiv 1212.1824), so that a short run is not dominated by its start.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from img2prompt.model.prompt_model import learned_tensors

UPDATES = "updates"
WEIGHTS = "weights/"


class WeightAverage:
    """Exponential moving average of a model's learned tensors, whole and on their device.

    After step n the average moves towards the weights by `max(1 - decay, 9 / (n + 8))`: all the way
    after the first step, later as `decay` says. Integer tensors, such as BatchNorm's counter, are
    copied.
    """

    def __init__(self, decay: float) -> None:
        self.weights: dict[str, Tensor] = {}
        """The average, by parameter or buffer name; empty before the first update."""
        self._decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of `model` after an optimiser step."""
        live = learned_tensors(model)
        if not self.weights:
            self.weights = {name: tensor.clone() for name, tensor in live.items()}
        average = {name: self.weights[name].to(tensor.device) for name, tensor in live.items()}
        numbers = [name for name, tensor in live.items() if tensor.is_floating_point()]
        self._updates += 1
        move = get_ema_multi_avg_fn(min(self._decay, (self._updates - 1) / (self._updates + 8)))
        move([average[name] for name in numbers], [live[name] for name in numbers], None)
        for name in live.keys() - set(numbers):
            average[name].copy_(live[name])
        self.weights = average

    def state(self) -> dict[str, Tensor]:
        """The average and its number of updates; tensors that later updates change."""
        updates = torch.tensor(self._updates)
        return {UPDATES: updates} | {WEIGHTS + name: t for name, t in self.weights.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue the average that `state` gave."""
        self._updates = int(state[UPDATES])
        names = (name for name in state if name.startswith(WEIGHTS))
        self.weights = {name.removeprefix(WEIGHTS): state[name].clone() for name in names}


@contextmanager
def other_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Run the model with other learned tensors in the block; its own come back exactly."""
    live = learned_tensors(model)
    own = {name: live[name].clone() for name in weights}
    try:
        _copy(weights, live)
        yield
    finally:
        _copy(own, live)


@torch.no_grad()
def _copy(weights: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        live[name].copy_(tensor)
