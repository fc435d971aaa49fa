"""DeepSpeed ZeRO as an engine whose state is independent of ranks.

DeepSpeed's own checkpoints belong to a number of workers. Here the parts of every tensor are
gathered when a run is saved, and partitioned anew for the workers that resume it.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from img2prompt.config.train import TrainConfig
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import learned_state
from img2prompt.train.batches import micro_batches
from img2prompt.train.checkpoint import EngineState
from img2prompt.train.engines.base import MOMENTS, copy_of, load_schedule, trainable
from img2prompt.train.optim import build_optimizer, build_schedule


class DeepSpeedEngine:
    """DeepSpeed ZeRO over the process group that Ray Train has started (arXiv 1910.02054)."""

    def __init__(self, module: nn.Module, config: TrainConfig, steps: int, device: torch.device):
        deepspeed = _import_deepspeed(device)
        self.module = module
        self.device = device
        self._optimizer = build_optimizer(module.to(device), config.optim)
        self._schedule = build_schedule(self._optimizer, config.optim, steps)
        self._utils = deepspeed.utils
        self._stage = _stage(config)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._optimizer,
            lr_scheduler=self._schedule,
            config=self._settings(config, device),
            dist_init_required=False,
        )
        self._steps = 0
        self._open = False

    @staticmethod
    def _settings(config: TrainConfig, device: torch.device) -> dict[str, Any]:
        dtype = compute_dtype(config.engine.precision, device)
        workers, half = dist.get_world_size(), dtype != torch.float32
        passes = micro_batches(config, workers)
        return {
            # DeepSpeed only checks this number. Shares may differ: the loop weights each part.
            "train_micro_batch_size_per_gpu": config.optim.batch_size // workers // passes,
            "gradient_accumulation_steps": passes,
            "gradient_clipping": config.optim.clip_norm,
            "zero_optimization": {"stage": _stage(config)},
            "torch_autocast": {"enabled": half, "dtype": str(dtype).removeprefix("torch.")},
            "steps_per_print": 10**9,
        }

    def forward(self, inputs: Tensor) -> Tensor:
        return self._engine(inputs)

    def backward(self, loss: Tensor) -> None:
        if self._open:
            self._engine.step()  # ends the previous part, without an optimiser step
        self._engine.backward(loss)
        self._open = True

    def step(self) -> None:
        self._engine.step()
        self._open = False
        self._steps += 1

    def state(self) -> EngineState:
        moments = self._moments() if self._steps else {}
        scaler = _loss_scaler(self._engine)
        scale = scaler.state_dict() if scaler else {}
        schedule = self._schedule.state_dict()
        return EngineState(self._learned(), moments, self._steps, schedule, scale)

    def _learned(self) -> dict[str, Tensor]:
        """Return whole tensors; between passes, ZeRO-3 leaves each worker a part of a weight."""
        if self._stage < 3:
            return copy_of(learned_state(self.module))
        whole = {
            name: self._utils.safe_get_full_fp32_param(tensor)
            for name, tensor in trainable(self.module)
        }
        return copy_of({name: whole.get(name, t) for name, t in learned_state(self.module).items()})

    def _moments(self) -> dict[str, Tensor]:
        """Gather whole moments from the parts of all workers."""
        self._link_moments()
        moments = {}
        for name, tensor in trainable(self.module):
            for key in MOMENTS:
                whole = (
                    self._utils.safe_get_full_optimizer_state(tensor, key)
                    if self._stage
                    else self._optimizer.state[tensor][key]
                )
                moments |= copy_of({f"{name}/{key}": whole})
        return moments

    def load(self, state: EngineState) -> None:
        if state.steps:
            self._create_moments(state.steps)
            self._partition(state.optimizer)
        load_schedule(self._schedule, state.schedule)
        if state.scale:
            _loss_scaler(self._engine).load_state_dict(dict(state.scale))
        self._steps = state.steps

    def _create_moments(self, steps: int) -> None:
        """Create the optimiser's state as its first step would."""
        flat = (
            _own_flat_groups(self._engine.optimizer)
            if self._stage == 3
            else [part for group in self._optimizer.param_groups for part in group["params"]]
        )
        for part in flat:
            zeros = {key: torch.zeros_like(part.data) for key in MOMENTS}
            self._optimizer.state[part] = {"step": torch.tensor(float(steps))} | zeros
        self._link_moments()

    def _link_moments(self) -> None:
        """Link each tensor to its moments in DeepSpeed's flat groups."""
        if self._stage in (1, 2):
            _link_states(self._engine.optimizer)

    def _partition(self, moments: Mapping[str, Tensor]) -> None:
        """Give this worker its part of each moment."""
        for name, tensor in trainable(self.module):
            for key in MOMENTS:
                whole = moments[f"{name}/{key}"].to(self.device)
                if self._stage == 0:
                    self._optimizer.state[tensor][key].copy_(whole)
                elif self._stage < 3:
                    self._utils.safe_set_full_optimizer_state(tensor, whole, key)
                else:
                    part = self._utils.safe_get_local_optimizer_state(tensor, key)
                    own = _own_part(whole, part.numel())
                    self._utils.safe_set_local_optimizer_state(tensor, own, key)


def _stage(config: TrainConfig) -> int:
    """Return the ZeRO stage: 0 for one worker, where sharding would only add copies."""
    return config.engine.zero_stage if dist.get_world_size() > 1 else 0


def _own_part(whole: Tensor, size: int) -> Tensor:
    """Return this worker's `size` numbers of a flat tensor; ZeRO-3 pads the last with zeros."""
    padding = size * dist.get_world_size() - whole.numel()
    flat = torch.nn.functional.pad(whole.flatten(), (0, padding))
    return flat.narrow(0, size * dist.get_rank(), size)


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for a device: late, as a probe does without it and it takes seconds."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # It calls collectives by deprecated names, which users cannot change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if device.type == "cpu":
        _use_gloo_only(deepspeed)
    return deepspeed


# DeepSpeed's private API. tests/distributed/test_internals.py checks it after an upgrade.


def _loss_scaler(engine: Any) -> Any:
    """Return the engine's `GradScaler`, None without one. Its public checkpoints know ranks."""
    return engine.torch_autocast_z0_gradscaler


def _own_flat_groups(optimizer: Any) -> list[Tensor]:
    """Return ZeRO-3's float32 parameters of this worker, one flat tensor a group.

    The public `safe_set_local_*` functions need moments that exist already.
    """
    return optimizer.fp32_partitioned_groups_flat


def _link_states(optimizer: Any) -> None:
    """Link ZeRO-1's and ZeRO-2's moments to their parameters, for `safe_get_full_*`.

    DeepSpeed does so itself at its first step, but after the first group only, when the other
    groups have no moments yet; no public call does it again.
    """
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def _use_gloo_only(deepspeed: Any) -> None:
    """Keep DeepSpeed from compiling a shared-memory all-reduce for CPUs at first use.

    It takes a minute and a C++ compiler, no setting turns it off, and small models on a few CPU
    workers are served as well by gloo.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
