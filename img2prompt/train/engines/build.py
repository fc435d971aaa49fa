"""Build the engine of a run: plain torch on one worker, or DeepSpeed on many.

Both keep float32 weights and compute in a shorter type by autocast, if the config says so.
"""

import torch
from torch import nn

from img2prompt.config.train import EngineConfig, TrainConfig
from img2prompt.model.precision import compute_dtype, shorten_frozen
from img2prompt.model.towers.base import Tower
from img2prompt.train.engines.base import Engine
from img2prompt.train.engines.plain import PlainEngine


def compiles(config: EngineConfig, device: torch.device) -> bool:
    """Return True if the tower's layers are to be compiled."""
    if config.compile == "auto":
        return device.type == "cuda" and (config.kind == "plain" or config.zero_stage < 3)
    return config.compile == "on"


def compile_layers(module: nn.Module) -> None:
    """Compile each layer of the tower by itself; layers of one shape share the compiled code.

    Fusing needs a C compiler; a machine without one runs the plain layers.
    """
    torch._dynamo.config.suppress_errors = True
    # Frozen, LoRA and trained layers, with and without gradients, and a last batch of fewer rows.
    torch._dynamo.config.recompile_limit = 32
    for part in module.modules():
        if isinstance(part, Tower):
            for layer in part.layers:
                layer.compile(dynamic=False)


def build_engine(
    module: nn.Module, config: TrainConfig, steps: int, device: torch.device
) -> Engine:
    """Build the engine that the config names; `steps` is the length of the whole run."""
    dtype = compute_dtype(config.engine.precision, device)
    if dtype != torch.float32:
        shorten_frozen(module, dtype)
    if config.engine.recompute:
        for part in module.modules():
            if isinstance(part, Tower):
                part.recompute_activations()
    if compiles(config.engine, device):
        compile_layers(module)
    if config.engine.kind == "plain":
        return PlainEngine(module, config, steps, device)
    from img2prompt.train.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(module, config, steps, device)
