"""What runs the backward pass and the step: plain torch on one worker, or DeepSpeed on many.

Both keep float32 weights and compute in a shorter type where asked, by autocast.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from img2prompt.config import EngineConfig, TrainConfig
from img2prompt.errors import UserError
from img2prompt.model.optim import build_optimizer, build_schedule
from img2prompt.model.precision import compute_dtype, shorten_frozen
from img2prompt.model.predictor import learned_state
from img2prompt.model.tower import Tower
from img2prompt.stages.checkpoint import EngineState

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps for each tensor."""


class Engine(Protocol):
    """A model that learns. Every worker calls every method, in the same order."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    def forward(self, inputs: Tensor) -> Tensor: ...
    def backward(self, loss: Tensor) -> None:
        """Add one part's gradients; they are averaged over parts and workers.

        `loss` is the mean over the part's rows, by how much more rows it has than the average part.
        """
        ...

    def step(self) -> None:
        """After the backward passes of all parts of a global batch."""
        ...

    def state(self) -> EngineState:
        """A copy that later steps leave alone; equal on all workers."""
        ...

    def load(self, state: EngineState) -> None:
        """Go on from optimiser, schedule and scale; the module was given its tensors before."""
        ...


def learning(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that require gradients, by name."""
    return [(name, tensor) for name, tensor in module.named_parameters() if tensor.requires_grad]


def load_schedule(schedule: LRScheduler, state: Mapping[str, Any]) -> None:
    """Go on where a saved schedule was; the rates are those of this config, which may be another.

    LambdaLR would take over the rates of the saved one.
    """
    assert isinstance(schedule, LambdaLR)
    schedule.last_epoch, schedule._step_count = state["last_epoch"], state["_step_count"]
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    rates = [peak * now for peak, now in zip(schedule.base_lrs, factors, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def copy_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, in memory of its own."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


class PlainEngine:
    """torch alone, on one worker."""

    def __init__(self, module: nn.Module, config: TrainConfig, steps: int, device: torch.device):
        self.module = module.to(device)
        self.device = device
        self._clip = config.optim.clip_norm
        self._parts = parts(config, workers=1)
        self._dtype = compute_dtype(config.engine.precision, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype == torch.float16)
        self._optimizer = build_optimizer(module, config.optim)
        self._schedule = build_schedule(self._optimizer, config.optim, steps)
        self._steps = 0

    def forward(self, inputs: Tensor) -> Tensor:
        half = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype) if half else contextlib.nullcontext():
            return self.module(inputs)

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss / self._parts).backward()

    def step(self) -> None:
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1

    def state(self) -> EngineState:
        found = self._optimizer.state
        moments = {
            f"{name}/{key}": found[tensor][key]
            for name, tensor in learning(self.module)
            for key in MOMENTS
            if tensor in found
        }
        model, schedule = copy_of(learned_state(self.module)), self._schedule.state_dict()
        scale = self._scaler.state_dict()
        return EngineState(model, copy_of(moments), self._steps, schedule, scale)

    def load(self, state: EngineState) -> None:
        for name, tensor in learning(self.module):
            if f"{name}/{MOMENTS[0]}" in state.optimizer:
                made = {key: state.optimizer[f"{name}/{key}"].to(self.device) for key in MOMENTS}
                step = torch.tensor(float(state.steps))
                self._optimizer.state[tensor] = {"step": step} | made
        load_schedule(self._schedule, state.schedule)
        if state.scale:
            self._scaler.load_state_dict(dict(state.scale))
        self._steps = state.steps


def compiles(config: EngineConfig, device: torch.device) -> bool:
    """Whether the tower's layers are compiled."""
    if config.compile == "auto":
        return device.type == "cuda" and (config.kind == "plain" or config.zero_stage < 3)
    return config.compile == "on"


def compile_layers(module: nn.Module) -> None:
    """Let torch.compile fuse each layer of the tower for itself; layers that are alike share it.

    A machine without a C compiler, which the fusing needs, goes on with the plain layers.
    """
    torch._dynamo.config.suppress_errors = True
    # Frozen, LoRA and trained layers, with and without gradients, and a last batch of fewer rows.
    torch._dynamo.config.recompile_limit = 32
    for part in module.modules():
        if isinstance(part, Tower):
            for layer in part.vision.encoder.layers:
                layer.compile(dynamic=False)


def build_engine(
    module: nn.Module, config: TrainConfig, steps: int, device: torch.device
) -> Engine:
    """The engine that the config asks for; `steps` is the length of the whole run."""
    dtype = compute_dtype(config.engine.precision, device)
    if dtype != torch.float32:
        shorten_frozen(module, dtype)
    if config.engine.recompute:
        from transformers import PreTrainedModel

        for part in module.modules():
            if isinstance(part, PreTrainedModel):
                part.activation_checkpointing_enable()
    if compiles(config.engine, device):
        compile_layers(module)
    if config.engine.kind == "plain":
        return PlainEngine(module, config, steps, device)
    from img2prompt.stages.zero import DeepSpeedEngine  # a probe does not pay for it

    return DeepSpeedEngine(module, config, steps, device)


def parts(config: TrainConfig, workers: int) -> int:
    """Passes in which each worker takes its share of a global batch; none is without rows."""
    least, most = config.optim.batch_size // workers, -(-config.optim.batch_size // workers)
    return min(least, -(-most // (config.engine.micro_batch or most)))


def rows_at_once(config: TrainConfig, workers: int) -> int:
    """Most rows that a worker takes in one pass."""
    most = -(-config.optim.batch_size // workers)
    return -(-most // parts(config, workers))


def check_batch(config: TrainConfig, workers: int) -> None:
    """A row for each worker, or a UserError."""
    size = config.optim.batch_size
    if size < workers:
        raise UserError(
            f"optim.batch_size is {size}; allowed with {workers} workers: {workers} or more"
        )
