"""How near does the generate stage come to the bare pipeline, and how fast is each batch size?

The bare pipeline is diffusers alone in this process, and both compute with one thread on a CPU.
First the stage runs in this process too, and CPU-seconds are compared, which hold on a busy
machine; they include the stage's encoding and writing. Then it runs with one actor between two runs
of the bare pipeline, and pictures/s are compared; its start is reported apart. The pictures are
compared, too. Last, batches of 1 to `--largest` pictures are timed, with `--compile` also compiled.

Without `--weights` the pipeline is small and random. Pictures/s of random and trained weights are
equal.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.append(str(Path(__file__).parents[1] / "generate"))

from tiny_pipelines import write_pipeline

from img2prompt import cli
from img2prompt.artifact import Artifact
from img2prompt.config.generate import GenerateConfig, PipelineConfig, SamplingConfig
from img2prompt.data import images
from img2prompt.distributed import cluster
from img2prompt.draft import Draft
from img2prompt.generate import run as generate
from img2prompt.generate.actors import ShardJob, with_dtype
from img2prompt.generate.checkpoint import checkpoint_digest
from img2prompt.generate.pictures import PicturePipeline
from img2prompt.generate.plan import PictureRequest, Plan, seed_of
from img2prompt.generate.prompts import choose_prompts
from img2prompt.generate.run import PROMPTS
from img2prompt.model.inference import one_thread
from img2prompt.workspace import Stage

SUBJECTS = ("cat", "boat", "violin", "planet", "sailor", "lighthouse", "snail", "train")
STYLES = ("in oil", "at night", "as pixel art", "in snow", "made of glass", "from above")


@dataclass(frozen=True)
class Options:
    """Sizes."""

    weights: str = ""
    """Folder of a diffusers pipeline; empty: a small random one."""
    channels: tuple[int, int] = (64, 128)
    """Width of the random denoiser's two levels."""
    side: int = 128
    steps: int = 4
    batch_size: int = 4
    pictures_per_shard: int = 16
    shards: int = 6
    largest: int = 8
    """Largest batch that is timed alone; 0: none."""
    compile: bool = False


def run(options: Options) -> dict[str, float]:
    """Measure and print the tables; return pictures/s of the bare pipeline and the stage."""
    with tempfile.TemporaryDirectory() as folder:
        config = with_dtype(make_config(options, Path(folder)))
        bare_cpu = bare(config, options)[2]
        stage_cpu = in_process(config, f"{folder}/in-process")
        rows = [["bare pipeline", f"{bare_cpu:.3g}"]]
        rows += [["stage", f"{stage_cpu:.3g} ({bare_cpu / stage_cpu:.1%} of its rate)"]]
        cli.show("CPU-seconds a picture", ["", ""], rows)
        with cluster.connect():
            before, expected, _ = bare(config, options)
            began = time.perf_counter()
            generated = generate.run(config, f"{folder}/out")
            whole = generated.counts["pictures"] / (time.perf_counter() - began)
            after, _, _ = bare(config, options)
        check_same(generated, expected)
        rates = {"bare": (before + after) / 2, "stage": steady_rate(generated)}
        rows = [
            ["bare pipeline", f"{rates['bare']:.3g}", f"{before:.3g} before, {after:.3g} after"]
        ]
        rows += [["stage", f"{rates['stage']:.3g}", f"{rates['stage'] / rates['bare']:.1%}"]]
        rows += [["stage with start", f"{whole:.3g}", f"{whole / rates['bare']:.1%}"]]
        cli.show(
            f"pictures of {options.side} px, {options.steps} steps", ["", "pictures/s", ""], rows
        )
        sweep(config, options)
    return rates


def make_config(options: Options, folder: Path) -> GenerateConfig:
    """Return the config of a run of `shards` shards, and write its prompts and pipeline."""
    pictures = options.shards * options.pictures_per_shard
    texts = [f"a {subject} {style}" for subject in SUBJECTS for style in STYLES]
    (folder / "prompts.txt").write_text("\n".join(texts))
    return GenerateConfig(
        prompts=str(folder / "prompts.txt"),
        weights=options.weights or write_pipeline("sd15", folder, channels=options.channels),
        pictures_per_prompt=-(-pictures // len(texts)),
        duplicate_cosine=1.0,
        sampling=SamplingConfig(steps=options.steps, width=options.side, height=options.side),
        pipeline=PipelineConfig(batch_size=options.batch_size),
        pictures_per_shard=options.pictures_per_shard,
        workers=1,
    )


def in_process(config: GenerateConfig, out: str) -> float:
    """Make all shards in this process; return CPU-seconds a picture of those after the first."""
    prompts, _ = choose_prompts(config)
    weights = checkpoint_digest(Path(config.weights), config.variant)
    draft = Draft.open(out, Stage.GENERATED, config, {"weights": weights})
    draft.write_table(PROMPTS, prompts)
    job = ShardJob(draft, config, Plan.of(config, len(prompts)), f"{out}/{PROMPTS}")
    job.make(0)
    began = time.process_time()
    reports = [job.make(shard) for shard in range(1, job.plan.shards)]
    return (time.process_time() - began) / sum(report.pictures for report in reports)


def bare(config: GenerateConfig, options: Options) -> tuple[float, dict[int, np.ndarray], float]:
    """Return pictures/s of diffusers alone, pixels by seed, and CPU-seconds a picture.

    The first batch warms up and does not count.
    """
    from diffusers import DiffusionPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    pipeline = DiffusionPipeline.from_pretrained(config.weights, dtype=dtype[config.pipeline.dtype])
    pipeline.to(device).set_progress_bar_config(disable=True)
    pixels: dict[int, np.ndarray] = {}
    with one_thread():
        for number, batch in enumerate(batches(config)):
            if number == 1:
                began, cpu_began = time.perf_counter(), time.process_time()
            output = pipeline(
                [request.prompt for request in batch],
                generator=[torch.Generator().manual_seed(request.seed) for request in batch],
                num_inference_steps=options.steps,
                width=options.side,
                height=options.side,
            )
            made = zip(batch, map(np.array, output.images), strict=True)
            pixels |= {request.seed: picture for request, picture in made}
    counted = len(pixels) - options.batch_size
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return counted / wall, pixels, cpu / counted


def batches(config: GenerateConfig) -> Iterator[list[PictureRequest]]:
    """Yield the first pictures of the run in its own batches."""
    prompts, _ = choose_prompts(config)
    requests = [
        PictureRequest(row["prompt_id"], row["prompt"], 0, seed_of(0, row["prompt_id"], 0))
        for row in prompts.to_pylist()
    ]
    size = config.pipeline.batch_size
    for start in range(0, len(requests) - size + 1, size):
        yield requests[start : start + size]


def steady_rate(generated: Artifact) -> float:
    """Return pictures/s of all shards after the first."""
    names = generated.names("reports/")[1:]
    reports = [json.loads(Path(generated.path(name)).read_text()) for name in names]
    return sum(r["pictures"] for r in reports) / sum(r["seconds"] for r in reports)


def check_same(generated: Artifact, expected: dict[int, np.ndarray]) -> None:
    """Raise AssertionError for pictures that differ by more than rounding."""
    compared = 0
    for row in generated.read_tables("pictures/", ["seed", "image"]).to_pylist():
        if row["seed"] in expected:
            made = images.decode(row["image"]["bytes"]).astype(int)
            assert np.abs(made - expected[row["seed"]]).max() <= 1, row["seed"]
            compared += 1
    assert compared >= len(expected) // 2


def sweep(config: GenerateConfig, options: Options) -> None:
    """Print pictures/s of this process by batch size, eager and compiled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    requests = [PictureRequest("", f"a {subject}", 0, 0) for subject in SUBJECTS * 2]
    rows: list[list[object]] = []
    for compiled in (False, True)[: 1 + options.compile]:
        size = 1
        while size <= options.largest:
            changes = {"pipeline.batch_size": size, "pipeline.compile": compiled}
            pipeline = PicturePipeline(config.replace(changes), device)
            batch = requests[:size]
            pipeline.make(batch)
            began = time.perf_counter()
            for _ in range(3):
                pipeline.make(batch)
            rate = 3 * size / (time.perf_counter() - began)
            rows.append(["compiled" if compiled else "eager", size, f"{rate:.3g}"])
            size *= 2
    if rows:
        cli.show(f"{device}, {config.pipeline.dtype}", ["", "batch", "pictures/s"], rows)


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
