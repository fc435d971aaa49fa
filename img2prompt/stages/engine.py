"""What runs the backward pass and the step: plain torch on one worker, or DeepSpeed on many.

Both keep float32 weights and compute in bfloat16 where asked, by autocast.
"""

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from img2prompt.config import OptimConfig, TrainConfig
from img2prompt.errors import UserError
from img2prompt.model.optim import build_optimizer, build_schedule
from img2prompt.model.predictor import learned_state, load_learned_state


class Engine(Protocol):
    """A model that learns. Every worker calls every method, in the same order."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    def forward(self, inputs: Tensor) -> Tensor: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self) -> None: ...
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of matrix products; `auto` is bfloat16 where the hardware has it, else float32."""
    if precision == "auto":
        has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
        return torch.bfloat16 if has_bf16 else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class PlainEngine:
    """torch alone, on one worker."""

    def __init__(self, module: nn.Module, config: TrainConfig, steps: int, device: torch.device):
        self.module = module.to(device)
        self.device = device
        self._clip = config.optim.clip_norm
        self._dtype = compute_dtype(config.engine.precision, device)
        self._optimizer = build_optimizer(module, config.optim)
        self._schedule = build_schedule(self._optimizer, config.optim, steps)

    def forward(self, inputs: Tensor) -> Tensor:
        half = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype) if half else contextlib.nullcontext():
            return self.module(inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._clip)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        state = {
            "model": learned_state(self.module),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        torch.save(state, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "engine.pt", map_location=self.device, weights_only=True)
        load_learned_state(self.module, state["model"], str(folder))
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])


class DeepSpeedEngine:
    """DeepSpeed ZeRO over the process group that Ray Train has started (arXiv 1910.02054)."""

    def __init__(self, module: nn.Module, config: TrainConfig, steps: int, device: torch.device):
        deepspeed = _import_deepspeed(device)
        self.module = module
        self.device = device
        optimizer = build_optimizer(module.to(device), config.optim)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            lr_scheduler=build_schedule(optimizer, config.optim, steps),
            config=self._settings(config, device),
            dist_init_required=False,
        )

    @staticmethod
    def _settings(config: TrainConfig, device: torch.device) -> dict[str, Any]:
        workers = torch.distributed.get_world_size()
        half = compute_dtype(config.engine.precision, device) != torch.float32
        return {
            "train_batch_size": config.optim.batch_size,
            "train_micro_batch_size_per_gpu": config.optim.batch_size // workers,
            "gradient_clipping": config.optim.clip_norm,
            "zero_optimization": {"stage": config.engine.zero_stage},
            "torch_autocast": {"enabled": half, "dtype": "bfloat16"},
            "steps_per_print": 10**9,
        }

    def forward(self, inputs: Tensor) -> Tensor:
        return self._engine(inputs)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> None:
        self._engine.step()

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(str(folder), tag="engine", exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        found, _ = self._engine.load_checkpoint(str(folder), tag="engine", load_module_strict=False)
        if found is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told of the device; importing it takes seconds that a probe need not pay."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # It calls collectives by names that this torch is about to drop; nothing a user could do.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if device.type == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce for CPUs at first use: a minute, and a
        # C++ compiler. Small models on a few CPU workers are served as well by gloo.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def build_engine(
    module: nn.Module, config: TrainConfig, steps: int, device: torch.device
) -> Engine:
    """The engine that the config asks for; `steps` is the length of the whole run."""
    if config.engine.kind == "plain":
        return PlainEngine(module, config, steps, device)
    return DeepSpeedEngine(module, config, steps, device)


def check_batch(optim: OptimConfig, workers: int) -> None:
    """Equal shares for all workers, or a UserError."""
    if optim.batch_size % workers:
        raise UserError(
            f"optim.batch_size is {optim.batch_size}; allowed with {workers} workers: "
            f"a multiple of {workers}"
        )
