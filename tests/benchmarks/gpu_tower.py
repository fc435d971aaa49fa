"""The tower on one GPU, eager and compiled: what `gpu.py` measures of it."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from img2prompt.config.train import EngineConfig, HeadConfig, OptimConfig, PlanConfig, TrainConfig
from img2prompt.data.vectors import DIMENSIONS
from img2prompt.model.cost import cost
from img2prompt.model.loss import cosine_loss
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import build_prompt_model
from img2prompt.model.towers.base import Tower
from img2prompt.model.towers.clip import ClipTower
from img2prompt.train.engines.build import build_engine

PLANS = {
    "probe": PlanConfig(),
    "published": PlanConfig(lora_rate=0.6, nfz_rate=0.4, lora_rank=16),
    "full": PlanConfig(nfz_rate=1.0, embeddings=True),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What runs; the sizes are those of CLIP ViT-L/14."""

    parts: tuple[Literal["features", "train", "dedupe"], ...] = ("features", "train", "dedupe")
    sizes: tuple[int, ...] = (336, 224)
    """Sides of the pictures in pixels."""
    patch: int = 14
    layers: int = 24
    width: int = 1024
    plans: tuple[Literal["probe", "published", "full"], ...] = ("probe", "published", "full")
    ways: tuple[Literal["eager", "compiled"], ...] = ("eager", "compiled")
    embed_batch: int = 256
    train_batch: int = 64
    steps: int = 20
    warmup: int = 4
    """Steps that are not counted, compilation among them."""
    vectors: tuple[int, ...] = (100_000, 2_000_000)
    checked: int = 20_000
    """Vectors of a run of its own that is compared with plain products."""
    threshold: float = 0.85


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def tower_of(options: Options, size: int) -> Tower:
    shape = {
        "hidden_size": options.width,
        "intermediate_size": 4 * options.width,
        "num_hidden_layers": options.layers,
        "num_attention_heads": max(1, options.width // 64),
        "image_size": size,
        "patch_size": options.patch,
    }
    return ClipTower.fresh(shape, seed=0)


def seconds_of(step: Callable[[], object], options: Options) -> float:
    """Mean seconds of a step after the warm-up."""
    for _ in range(options.warmup):
        step()
    _wait()
    began = time.perf_counter()
    for _ in range(options.steps):
        step()
    _wait()
    return (time.perf_counter() - began) / options.steps


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def features(options: Options, size: int) -> dict[str, float]:
    """Pictures a second by way."""
    from img2prompt.data import images

    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (16, size // 8, size // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    files = [images.encode(images.resize(picture, size, "crop"), "jpeg") for picture in smooth]
    files = [files[row % len(files)] for row in range(options.embed_batch)]
    tower = tower_of(options, size).to(device()).eval().to(compute_dtype("auto", device()))
    found, made = {}, {}
    with torch.inference_mode(), ThreadPoolExecutor(os.cpu_count()) as threads:
        pixels = _sent(list(threads.map(images.decode, files)))
        for way in options.ways:
            if way == "compiled":
                tower.compile(dynamic=False)
            made[way] = tower(pixels)
            seconds = seconds_of(lambda: tower(pixels), options)
            found[f"{way}, tensors"] = options.embed_batch / seconds
            batches = _decoded(files, threads)
            step = lambda: tower(next(batches))  # noqa: B023, E731
            found[f"{way}, JPEG files"] = options.embed_batch / seconds_of(step, options)
            for other in (tower(next(batches)), made[options.ways[0]]):
                _same(made[way], other, way)
    return found


def _decoded(files: list[bytes], threads: ThreadPoolExecutor) -> Iterator[Tensor]:
    """The same files over and over; while one batch is used, the next is decoded and sent."""
    from img2prompt.data import images

    with ThreadPoolExecutor(1) as ahead:

        def batch() -> Tensor:
            return _sent(list(threads.map(images.decode, files)))

        coming = ahead.submit(batch)
        while True:
            ready = coming.result()
            coming = ahead.submit(batch)
            yield ready


def _sent(pictures: list[np.ndarray]) -> Tensor:
    pixels = torch.from_numpy(np.stack(pictures))
    if torch.cuda.is_available():
        pixels = pixels.pin_memory().to("cuda", non_blocking=True)
    return pixels


def _same(found: Tensor, expected: Tensor, what: str) -> None:
    """Refuse (AssertionError) features that point elsewhere; bf16 keeps about three digits."""
    lowest = torch.cosine_similarity(found.float(), expected.float()).min().item()
    assert lowest > 0.999, f"{what}: cosine {lowest:.4f}"


@dataclass(frozen=True)
class Fit:
    """How one way to train went."""

    rate: float
    """Pictures a second."""
    flop: int
    """Of a picture, forward and backward."""
    memory: float
    """Most of the GPU's, GiB; 0 on a CPU."""
    losses: tuple[float, ...]
    """Of the first steps."""


def fit(options: Options, size: int, plan: PlanConfig, way: str) -> Fit:
    """Steps of the plain engine on one batch that lies on the device."""
    config = TrainConfig(
        name="gpu",
        plan=plan,
        optim=OptimConfig(batch_size=options.train_batch, warmup=0),
        engine=EngineConfig(kind="plain", workers=1, compile="on" if way == "compiled" else "off"),
    )
    tower = tower_of(options, size)
    half = compute_dtype("auto", device()) != torch.float32
    price = cost(tower.shape, plan, HeadConfig(), half=half)
    model = build_prompt_model(tower, tower.shape.width, plan, config.head, config.seed)
    engine = build_engine(model, config, options.warmup + options.steps, device())
    model.train()
    draw = torch.Generator().manual_seed(0)
    shape = (options.train_batch, size, size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw).to(device())
    targets = torch.randn(options.train_batch, DIMENSIONS, generator=draw).to(device())
    losses: list[Tensor] = []

    def step() -> None:
        loss = cosine_loss(engine.forward(pixels), targets)
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())

    _forget_memory()
    seconds = seconds_of(step, options)
    kept = tuple(loss.item() for loss in losses[:4])
    return Fit(options.train_batch / seconds, price.forward + price.backward, _memory(), kept)


def _forget_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _memory() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def fits(options: Options, size: int) -> dict[tuple[str, str], Fit]:
    """Every plan both ways; AssertionError when the first losses differ."""
    found = {}
    for name, way in itertools.product(options.plans, options.ways):
        found[name, way] = fit(options, size, PLANS[name], way)
        torch._dynamo.reset()
        first = found[name, options.ways[0]].losses
        apart = max(abs(a - b) for a, b in zip(found[name, way].losses, first, strict=True))
        assert apart < 5e-3, f"{name}, {way}: losses {apart:.2g} apart"
    return found
