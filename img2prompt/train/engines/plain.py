"""Plain torch on one worker, as an engine."""

import contextlib

import torch
from torch import Tensor, nn

from img2prompt.config.train import TrainConfig
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import learned_state
from img2prompt.train.batches import micro_batches
from img2prompt.train.checkpoint import EngineState
from img2prompt.train.engines.base import MOMENTS, copy_of, load_schedule, trainable
from img2prompt.train.optim import build_optimizer, build_schedule


class PlainEngine:
    """Plain torch on one worker."""

    def __init__(self, module: nn.Module, config: TrainConfig, steps: int, device: torch.device):
        self.module = module.to(device)
        self.device = device
        self._clip = config.optim.clip_norm
        self._parts = micro_batches(config, workers=1)
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
        by_tensor = self._optimizer.state
        moments = {
            f"{name}/{key}": by_tensor[tensor][key]
            for name, tensor in trainable(self.module)
            for key in MOMENTS
            if tensor in by_tensor
        }
        model, schedule = copy_of(learned_state(self.module)), self._schedule.state_dict()
        scale = self._scaler.state_dict()
        return EngineState(model, copy_of(moments), self._steps, schedule, scale)

    def load(self, state: EngineState) -> None:
        for name, tensor in trainable(self.module):
            if f"{name}/{MOMENTS[0]}" in state.optimizer:
                moments = {key: state.optimizer[f"{name}/{key}"].to(self.device) for key in MOMENTS}
                step = torch.tensor(float(state.steps))
                self._optimizer.state[tensor] = {"step": step} | moments
        load_schedule(self._schedule, state.schedule)
        if state.scale:
            self._scaler.load_state_dict(dict(state.scale))
        self._steps = state.steps
