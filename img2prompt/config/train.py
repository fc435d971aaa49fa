"""One training run."""

from dataclasses import dataclass, field
from typing import Literal

from img2prompt.config.base import Config, check
from img2prompt.config.recipe import RecipeConfig
from img2prompt.config.tower import TowerConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Config):
    """Which layers learn: the top `nfz_rate` trained whole, `lora_rate` below them by LoRA."""

    lora_rate: float = 0.0
    nfz_rate: float = 0.0
    lora_rank: int = 16
    """True rank of the LoRA matrices (the published code's `rank=4` means 1024 // 4 = 256)."""
    lora_scale: float = 1.0
    """Factor on the LoRA update (alpha / rank in the terms of arXiv 2106.09685)."""
    lora_dropout: float = 0.0
    """Share of the LoRA matrices' inputs that a training step drops."""
    lora_init: Literal["kaiming", "published"] = "kaiming"
    """Of the down-matrix: Kaiming uniform, or normal with deviation 1 / rank as the published code
    has it. The up-matrix is zero in both, so the tower's output is unchanged at the start."""
    embeddings: bool = False
    """Train the patch and position embeddings too, as a tower that starts from nothing needs."""

    def __post_init__(self) -> None:
        check(0 <= self.lora_rate <= 1, "plan.lora_rate", self.lora_rate, "0 to 1")
        check(0 <= self.nfz_rate <= 1, "plan.nfz_rate", self.nfz_rate, "0 to 1")
        check(self.lora_rank >= 1, "plan.lora_rank", self.lora_rank, "1 or more")
        check(self.lora_scale > 0, "plan.lora_scale", self.lora_scale, "above 0")
        check(0 <= self.lora_dropout < 1, "plan.lora_dropout", self.lora_dropout, "[0, 1)")

    @property
    def frozen_tower(self) -> bool:
        """True for a probe: no layer of the tower learns."""
        return self.lora_rate == 0 and self.nfz_rate == 0 and not self.embeddings


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Config):
    """From the tower's feature to the 384 numbers of the prompt embedding."""

    width: int = 0
    """0: one linear layer; else Linear, BatchNorm, ReLU, Linear with this many hidden units."""
    dropout: float = 0.0
    """Share of the last linear layer's inputs that a training step drops."""

    def __post_init__(self) -> None:
        check(self.width >= 0, "head.width", self.width, "0 (linear) or more")
        check(0 <= self.dropout < 1, "head.dropout", self.dropout, "[0, 1)")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """AdamW with linear warm-up and cosine decay."""

    epochs: int = 10
    batch_size: int = 64
    """Rows of a global batch, over all workers together."""
    lr: float = 1e-4
    """Peak learning rate of the tower's trained layers and LoRA matrices."""
    head_lr: float = 1e-3
    """Peak learning rate of the head."""
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of all steps in which the rate rises."""
    clip_norm: float = 1.0
    """Largest global gradient norm."""
    share: float = 1.0
    """Share of the training rows that are used; those of a smaller share are among those of a
    larger one. A search tries settings on less than all rows."""

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "optim.epochs", self.epochs, "1 or more")
        check(self.batch_size >= 1, "optim.batch_size", self.batch_size, "1 or more")
        for name in ("lr", "head_lr", "clip_norm"):
            check(getattr(self, name) > 0, f"optim.{name}", getattr(self, name), "above 0")
        check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        check(0 <= self.warmup < 1, "optim.warmup", self.warmup, "[0, 1)")
        check(0 < self.share <= 1, "optim.share", self.share, "above 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Config):
    """What runs the backward pass and the step."""

    kind: Literal["plain", "deepspeed"] = "deepspeed"
    """`plain`: torch on one worker (the probe needs no more)."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 1 shards optimiser state, 2 gradients, 3 weights too (arXiv 1910.02054).

    0 was no slower than 1 and 2 on two CPU workers, and took the least memory: what ZeRO shards is
    little where little learns (`tests/benchmarks/recipe.py`)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of matrix products; `auto`: bf16 where the GPU or CPU has it, else fp32. fp16 scales the loss
    and is for GPUs without bf16, with `plain` or ZeRO 0: DeepSpeed's other stages would clip the
    scaled gradients."""
    micro_batch: int = 0
    """Most rows that a worker takes at once; gradients add up to the global batch. 0: its share.
    Not with a wide head, whose BatchNorm needs the whole global batch in one pass."""
    recompute: bool = False
    """Activation checkpointing: keep only the inputs of the tower's layers, and compute what is in
    them again for the backward pass. Less memory, about a third more work (arXiv 1604.06174)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the tower's layers, which fuses what lies between their matrix products;
    the first steps then take minutes. `auto`: on GPUs, without ZeRO 3, whose weights come and go
    between layers."""
    workers: int = 0
    """Training workers; 0: one per GPU, or two CPU workers where there is no GPU."""
    min_workers: int = 0
    """Elastic: go on with so few workers when machines are lost, and with up to `workers` when some
    come. Every number of workers makes the same steps. 0: always `workers`."""
    resize_seconds: float = 60.0
    """Between looks for machines for more workers; a change is a restart, after a checkpoint."""
    save_every: int = 0
    """Steps between checkpoints inside an epoch; 0: one after each epoch only."""
    save_seconds: float = 0.0
    """Seconds between checkpoints inside an epoch; 0: only as `save_every` says."""
    keep: int = 2
    """Newest checkpoints to keep, beside the one of the best epoch."""
    skip_nonfinite: int = 0
    """Global batches whose loss is no finite number that a run may leave out before it stops."""
    hang_timeout: float = 1800.0
    """Seconds without any progress after which a worker counts as hanging and all are replaced."""
    mlflow: str = ""
    """Tracking URI of an MLflow server that gets the metrics too; empty: none."""

    def __post_init__(self) -> None:
        check(self.workers >= 0, "engine.workers", self.workers, "0 (automatic) or more")
        least = self.min_workers
        elastic = least == 0 if self.kind == "plain" else 0 <= least <= (self.workers or least)
        allowed = "0 (not elastic) to engine.workers, 0 with engine.kind plain"
        check(elastic, "engine.min_workers", least, allowed)
        check(self.resize_seconds > 0, "engine.resize_seconds", self.resize_seconds, "above 0")
        check(self.micro_batch >= 0, "engine.micro_batch", self.micro_batch, "0 (all) or more")
        scaled = self.precision != "fp16" or self.kind == "plain" or self.zero_stage == 0
        check(scaled, "engine.zero_stage", self.zero_stage, "0 with engine.precision fp16")
        whole = self.compile != "on" or self.zero_stage < 3 or self.kind == "plain"
        check(whole, "engine.compile", self.compile, "auto or off with engine.zero_stage 3")
        check(self.save_every >= 0, "engine.save_every", self.save_every, "0 (epochs only) or more")
        check(self.save_seconds >= 0, "engine.save_seconds", self.save_seconds, "0 or more")
        check(self.hang_timeout >= 5, "engine.hang_timeout", self.hang_timeout, "5 or more")
        skips = self.skip_nonfinite
        check(skips >= 0, "engine.skip_nonfinite", skips, "0 (stop at the first) or more")
        whole = skips == 0 or self.micro_batch == 0
        check(whole, "engine.skip_nonfinite", skips, "0 with engine.micro_batch")
        check(self.keep >= 1, "engine.keep", self.keep, "1 or more")
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
    """Run whose head is the start (LP-FT: arXiv 2202.10054); empty: a fresh head."""
    seed: int = 0

    def __post_init__(self) -> None:
        check(
            bool(self.name) and "/" not in self.name,
            "name",
            self.name,
            "a folder name without slashes",
        )
        check(self.start_from != self.name, "start_from", self.start_from, "another run")
        check(self.seed >= 0, "seed", self.seed, "0 or more")
        whole = self.engine.micro_batch == 0 or self.head.width == 0
        check(
            whole,
            "engine.micro_batch",
            self.engine.micro_batch,
            "0 with a wide head: its BatchNorm needs the whole global batch in one pass",
        )
        pictures = self.recipe.flip == 0 or not self.plan.frozen_tower
        check(
            pictures,
            "recipe.flip",
            self.recipe.flip,
            "0 for a probe: it reads cached features, which are mirrored by features.views",
        )
        whole = self.recipe.ema_decay == 0 or self.engine.kind == "plain"
        check(
            whole or self.engine.zero_stage < 3,
            "recipe.ema_decay",
            self.recipe.ema_decay,
            "0 with engine.zero_stage 3, which leaves each worker only a part of every weight",
        )
