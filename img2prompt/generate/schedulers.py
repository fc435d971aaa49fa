"""Samplers by their names in DiffusionDB, where it has one."""

from typing import Any

from img2prompt.config.generate import SamplingConfig
from img2prompt.errors import UserError

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "k_euler": ("EulerDiscreteScheduler", {}),
    "k_euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "k_heun": ("HeunDiscreteScheduler", {}),
    "k_dpm_2": ("KDPM2DiscreteScheduler", {}),
    "k_dpm_2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "k_lms": ("LMSDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
}
"""diffusers' class and its settings. Each draws its noise, if any, from the generators that it is
given, one a picture; DPMSolverSDE, for one, has a source of its own."""

_NAMES = {kind: name for name, (kind, _) in CLASSES.items()}
_NAMES["FlowMatchEulerDiscreteScheduler"] = "flow_euler"  # draws no noise


def build_scheduler(sampling: SamplingConfig, own: Any) -> Any:
    """Return the configured scheduler, with the noise schedule and prediction type of `own`.

    Raises:
        UserError: `own` is to be used and might draw noise that a batch shares, or is of a kind
            that cannot be replaced.
    """
    if sampling.scheduler == "own":
        sampler_name(own)
        return own
    import diffusers

    kind, settings = CLASSES[sampling.scheduler]
    if not hasattr(own.config, "beta_schedule"):
        raise UserError(
            f"sampling.scheduler is {sampling.scheduler!r}; allowed for a checkpoint with "
            f"{type(own).__name__}: own"
        )
    return getattr(diffusers, kind).from_config(own.config, **settings)


def sampler_name(scheduler: Any) -> str:
    """Return the name of a scheduler.

    Raises:
        UserError: its noise might depend on the batch.
    """
    kind = type(scheduler).__name__
    if kind not in _NAMES:
        raise UserError(
            f"the checkpoint's scheduler is {kind}, whose noise may depend on the batch: choose "
            f"one with --sampling.scheduler; allowed: {', '.join(CLASSES)}"
        )
    return _NAMES[kind]
