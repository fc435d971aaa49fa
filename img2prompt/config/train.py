"""One training run."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from img2prompt.config.base import Config, check
from img2prompt.config.ranges import (
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
)
from img2prompt.config.recipe import RecipeConfig
from img2prompt.config.tower import TowerConfig

LoraTargets = Literal["attention", "mlp", "both"]
RidgeStrength = Annotated[float, Field(ge=1e-6)]
"""Smaller ones would amplify rounding errors where features depend on each other."""
STRENGTHS = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Config):
    """The layers that learn: the top `nfz_rate` fully, the `lora_rate` below them by LoRA."""

    section = "plan"

    lora_rate: Fraction = 0.0
    nfz_rate: Fraction = 0.0
    lora_rank: PositiveInt = 16
    """True rank of the LoRA matrices (the published code's `rank=4` means 1024 // 4 = 256)."""
    lora_scale: PositiveFloat = 1.0
    """Factor on the LoRA update (alpha / rank in the terms of arXiv 2106.09685)."""
    lora_rslora: bool = False
    """Divide `lora_scale` by the square root of the rank, so that one setting suits all ranks
    (rsLoRA, arXiv 2312.03732, whose alpha `lora_scale` then is)."""
    lora_targets: LoraTargets = "attention"
    """Matrices of a layer that LoRA adapts: the projections of its attention, those of its MLP, or
    both (compared in arXiv 2106.09685, section 7.1, and arXiv 2110.04366). In a convolutional tower
    all three are its 1 x 1 convolutions."""
    lora_dora: bool = False
    """Learn the length of each row of an adapted matrix apart from its direction (DoRA, arXiv
    2402.09353). It takes more time and memory."""
    lora_dropout: FractionBelowOne = 0.0
    """Share of the LoRA matrices' inputs that a training step drops."""
    lora_init: Literal["kaiming", "published", "pissa"] = "kaiming"
    """Initial down-matrix: Kaiming uniform, or normal with deviation 1 / rank as in the published
    code; the up-matrix is zero in both. `pissa` (arXiv 2404.02948): the largest singular vectors of
    the matrix, which keeps the rest. The tower's output is unchanged at the start in all three."""
    embeddings: bool = False
    """Train the patch and position embeddings too, as a tower with random weights needs."""

    @property
    def frozen_tower(self) -> bool:
        """True for a probe: no layer of the tower learns."""
        return self.lora_rate == 0 and self.nfz_rate == 0 and not self.embeddings


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Config):
    """From the tower's feature to the 384 numbers of the prompt embedding."""

    section = "head"

    width: Annotated[int, Field(ge=0, description="0 (linear) or more")] = 0
    """0: one linear layer; else Linear, BatchNorm, ReLU, Linear with this many hidden units."""
    dropout: FractionBelowOne = 0.0
    """Share of the last linear layer's inputs that a training step drops."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """AdamW with linear warm-up and cosine decay, or a linear probe in closed form."""

    section = "optim"

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 64
    """Rows of a global batch, over all workers together."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate of the tower's trained layers and LoRA matrices."""
    head_lr: PositiveFloat = 1e-3
    """Peak learning rate of the head."""
    layer_decay: PositiveFraction = 1.0
    """Factor on `lr` from each layer of the tower to the one below it (discriminative fine-tuning,
    arXiv 1801.06146). The top layer and the norm above it learn at `lr`, the embeddings one step
    slower than the lowest layer. The 3rd place of Kaggle's "Stable Diffusion - Image to Prompts"
    had 0.6 on ViT-L and 0.4 on ViT-B. 1: all layers learn alike."""
    weight_decay: NonNegativeFloat = 0.01
    warmup: FractionBelowOne = 0.1
    """Share of all steps in which the learning rate rises."""
    clip_norm: PositiveFloat = 1.0
    """Largest global gradient norm."""
    share: PositiveFraction = 1.0
    """Share of the training rows that are used. A larger share contains the rows of a smaller one.
    A search tries settings on a share of the rows."""
    solver: Literal["adamw", "ridge"] = "adamw"
    """`ridge`: solve a linear probe in closed form, by ridge regression on standardised features.
    Of the settings here and of the engine only `ridge_strengths` and `ridge_folds` then matter."""
    ridge_strengths: Annotated[tuple[RidgeStrength, ...], Field(min_length=1)] = STRENGTHS
    """Penalties to try on the squared weights of standardised features, beside the mean squared
    error. The one with the best mean cosine on held-out folds is published."""
    ridge_folds: Annotated[int, Field(ge=2)] = 5
    """Parts of the training rows, each held out once. Similar prompts share one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        strengths = self.ridge_strengths
        distinct = len(set(strengths)) == len(strengths)
        check(distinct, "optim.ridge_strengths", strengths, "each strength once")


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Config):
    """How a run is executed: engine, precision, workers, checkpoints."""

    section = "engine"

    kind: Literal["plain", "deepspeed"] = "deepspeed"
    """`plain`: torch on one worker (the probe needs no more)."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 1 shards optimiser state, 2 gradients, 3 weights too (arXiv 1910.02054).

    Stage 0 was as fast as 1 and 2 on two CPU workers, and took the least memory: ZeRO saves little
    where few parameters learn (`tests/benchmarks/recipe.py`)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number type of matrix products; `auto`: bf16 where the GPU or CPU has it, else fp32. fp16
    scales the loss and is for GPUs without bf16, with `plain` or ZeRO 0: DeepSpeed's other stages
    would clip the scaled gradients."""
    micro_batch: NonNegativeInt = 0
    """Most rows of one forward pass of a worker; gradients accumulate over the global batch. 0: all
    of the worker's rows. Not with a wide head, whose BatchNorm needs the whole global batch in one
    pass."""
    recompute: bool = False
    """Activation checkpointing: keep only the inputs of the tower's layers, and recompute their
    activations in the backward pass. Less memory, about a third
    more compute (arXiv 1604.06174)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the tower's layers, which fuses the operations between matrix products; the
    first steps then take minutes. `auto`: on GPUs, but not with ZeRO 3, which gathers and frees
    weights between layers."""
    workers: Annotated[int, Field(ge=0, description="0 (automatic) or more")] = 0
    """Training workers; 0: one per GPU, or two CPU workers where there is no GPU."""
    min_workers: NonNegativeInt = 0
    """Elastic training: continue with as few workers as this when machines are lost, and with up to
    `workers` when some are added. Every number of workers makes the same steps. 0: always
    `workers`."""
    resize_seconds: PositiveFloat = 60.0
    """Seconds between checks for added machines. A change of workers restarts the run from a
    checkpoint."""
    save_every: NonNegativeInt = 0
    """Steps between checkpoints inside an epoch; 0: one after each epoch only."""
    save_seconds: NonNegativeFloat = 0.0
    """Seconds between checkpoints inside an epoch; 0: only as `save_every` says."""
    keep: PositiveInt = 2
    """Newest checkpoints to keep, in addition to the one of the best epoch."""
    skip_nonfinite: NonNegativeInt = 0
    """Global batches with a non-finite loss that a run may skip before it stops."""
    hang_timeout: Annotated[float, Field(ge=5)] = 1800.0
    """Seconds without progress after which a worker counts as hanging and all are replaced."""
    mlflow: str = ""
    """Tracking URI of an MLflow server that also receives the metrics; empty: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.min_workers
        elastic = least == 0 if self.kind == "plain" else least <= (self.workers or least)
        allowed = "0 (not elastic) to engine.workers, 0 with engine.kind plain"
        check(elastic, "engine.min_workers", least, allowed)
        unscaled = self.precision != "fp16" or self.kind == "plain" or self.zero_stage == 0
        check(unscaled, "engine.zero_stage", self.zero_stage, "0 with engine.precision fp16")
        compilable = self.compile != "on" or self.zero_stage < 3 or self.kind == "plain"
        check(compilable, "engine.compile", self.compile, "auto or off with engine.zero_stage 3")
        skips = self.skip_nonfinite
        one_pass = skips == 0 or self.micro_batch == 0
        check(one_pass, "engine.skip_nonfinite", skips, "0 with engine.micro_batch")
        single = self.kind != "plain" or self.workers <= 1
        check(single, "engine.workers", self.workers, "0 or 1 with engine.kind plain")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """One training run: a probe, a fine-tune or a trial of a search."""

    name: str
    """Folder name under `runs/`."""
    tower: TowerConfig = field(default_factory=TowerConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    start_from: str = ""
    """Run whose head this one starts from (LP-FT: arXiv 2202.10054); empty: a random head."""
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        good = bool(self.name) and "/" not in self.name
        check(good, "name", self.name, "a folder name without slashes")
        check(self.start_from != self.name, "start_from", self.start_from, "another run")
        one_pass = self.engine.micro_batch == 0 or self.head.width == 0
        check(
            one_pass,
            "engine.micro_batch",
            self.engine.micro_batch,
            "0 with a wide head: its BatchNorm needs the whole global batch in one pass",
        )
        alone = not self.tower.beside or self.plan.frozen_tower
        allowed = "empty unless all layers are frozen: a fine-tune trains one tower"
        check(alone, "tower.beside", self.tower.beside, allowed)
        if self.plan.frozen_tower:
            self._check_cached()
        check(
            self.recipe.l2_sp == 0 or not self.plan.frozen_tower,
            "recipe.l2_sp",
            self.recipe.l2_sp,
            "0 for a probe, which trains no pretrained layer",
        )
        whole = self.engine.kind == "plain" or self.engine.zero_stage < 3
        for name in ("ema_decay", "l2_sp"):
            value = getattr(self.recipe, name)
            check(
                whole or value == 0,
                f"recipe.{name}",
                value,
                "0 with engine.zero_stage 3, which leaves each worker only a part of every weight",
            )
        gathered = not self.plan.lora_dora or self.engine.kind == "plain"
        check(
            gathered or self.engine.zero_stage < 3,
            "plan.lora_dora",
            self.plan.lora_dora,
            "false with engine.zero_stage 3, which frees the weights whose length DoRA reads",
        )
        if self.optim.solver == "ridge":
            self._check_ridge()

    def _check_cached(self) -> None:
        """Raise a UserError for an augmentation of pictures by a probe."""
        mirrored = ", which are mirrored by features.views"
        for name, value, allowed, hint in (
            ("recipe.flip", self.recipe.flip, 0, mirrored),
            ("recipe.one_per_prompt", self.recipe.one_per_prompt, False, ""),
            ("recipe.crop_area", self.recipe.crop_area, 1, ""),
            ("recipe.rand_augment", self.recipe.rand_augment, 0, ""),
            ("recipe.erase", self.recipe.erase, 0, ""),
        ):
            words = "false" if allowed is False else allowed
            reason = f"{words} for a probe: it reads cached features{hint}"
            check(value == allowed, name, value, reason)

    def _check_ridge(self) -> None:
        """Raise a UserError for a setting that has no effect on a probe in closed form."""
        rates = (self.plan.lora_rate, self.plan.nfz_rate)
        probe = "a probe with optim.solver ridge: rates 0 and no embeddings trained"
        check(self.plan.frozen_tower, "plan", rates, probe)
        for name, value, allowed in (
            ("head.width", self.head.width, 0),
            ("head.dropout", self.head.dropout, 0),
            ("recipe.ema_decay", self.recipe.ema_decay, 0),
            ("recipe.loss", self.recipe.loss, "cosine"),
            ("recipe.mse_weight", self.recipe.mse_weight, 0),
            ("recipe.negative_weight", self.recipe.negative_weight, 0),
            ("recipe.info_nce_weight", self.recipe.info_nce_weight, 0),
            ("optim.share", self.optim.share, 1),
            ("start_from", self.start_from, ""),
            ("engine.mlflow", self.engine.mlflow, ""),
        ):
            words = "empty" if allowed == "" else allowed
            check(value == allowed, name, value, f"{words} with optim.solver ridge")
