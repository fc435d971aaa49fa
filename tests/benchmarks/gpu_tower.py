"""Measurements of the tower on one GPU, eager and compiled, for `gpu.py`."""

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
from img2prompt.model.loss import cosine_loss
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import build_prompt_model
from img2prompt.model.run_cost import cost
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
    """Parts, sizes (by default those of CLIP ViT-L/14) and steps."""

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
    """Steps that are not counted; they include compilation."""
    vectors: tuple[int, ...] = (100_000, 2_000_000)
    checked: int = 20_000
    """Vectors of a separate run that is compared with plain products."""
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
    """Return the mean seconds of a step after the warm-up."""
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
    """Return pictures a second, eager or compiled, from tensors and from JPEG files."""
    from img2prompt.data import images

    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (16, size // 8, size // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    files = [images.encode(images.resize(picture, size, "crop"), "jpeg") for picture in smooth]
    files = [files[row % len(files)] for row in range(options.embed_batch)]
    tower = tower_of(options, size).to(device()).eval().to(compute_dtype("auto", device()))
    rates, outputs = {}, {}
    with torch.inference_mode(), ThreadPoolExecutor(os.cpu_count()) as threads:
        pixels = _sent(list(threads.map(images.decode, files)))
        for way in options.ways:
            if way == "compiled":
                tower.compile(dynamic=False)
            outputs[way] = tower(pixels)
            seconds = seconds_of(lambda: tower(pixels), options)
            rates[f"{way}, tensors"] = options.embed_batch / seconds
            batches = _decoded(files, threads)
            step = lambda: tower(next(batches))  # noqa: B023, E731
            rates[f"{way}, JPEG files"] = options.embed_batch / seconds_of(step, options)
            for other in (tower(next(batches)), outputs[options.ways[0]]):
                _same(outputs[way], other, way)
    return rates


def _decoded(files: list[bytes], threads: ThreadPoolExecutor) -> Iterator[Tensor]:
    """Repeat the files; while one batch is used, decode the next and send it to the device."""
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


def _same(features: Tensor, expected: Tensor, name: str) -> None:
    """Raise AssertionError for features that point elsewhere; bf16 keeps about three digits."""
    lowest = torch.cosine_similarity(features.float(), expected.float()).min().item()
    assert lowest > 0.999, f"{name}: cosine {lowest:.4f}"


@dataclass(frozen=True)
class Fit:
    """Measurements of training one plan, eager or compiled."""

    rate: float
    """Pictures a second."""
    flop: int
    """FLOP of a picture, forward and backward."""
    memory: float
    """Peak GPU memory in GiB; 0 on a CPU."""
    losses: tuple[float, ...]
    """Losses of the first steps."""


def fit(options: Options, size: int, plan: PlanConfig, way: str) -> Fit:
    """Time steps of the plain engine on one batch that is already on the device."""
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
    first = tuple(loss.item() for loss in losses[:4])
    return Fit(options.train_batch / seconds, price.forward + price.backward, _memory(), first)


def _forget_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _memory() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def fits(options: Options, size: int) -> dict[tuple[str, str], Fit]:
    """Train every plan both ways; AssertionError if the first losses differ."""
    measured = {}
    for name, way in itertools.product(options.plans, options.ways):
        measured[name, way] = fit(options, size, PLANS[name], way)
        torch._dynamo.reset()
        first = measured[name, options.ways[0]].losses
        apart = max(abs(a - b) for a, b in zip(measured[name, way].losses, first, strict=True))
        assert apart < 5e-3, f"{name}, {way}: losses {apart:.2g} apart"
    return measured
