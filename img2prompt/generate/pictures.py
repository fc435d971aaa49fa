"""Batches of pictures from a diffusers pipeline, in one process and on one device.

The noise of a picture is drawn on the CPU from a generator of its own, so the picture does not
depend on the other pictures of a batch, on the order or on the worker. A batch always has the
configured number of rows, filled up by copies of its last one: kernels may sum in another order for
another shape. On a CPU one thread computes, for the same reason.
"""

import contextlib
import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from img2prompt.config.generate import GenerateConfig
from img2prompt.errors import UserError
from img2prompt.generate.checkpoint import find_checkpoint, load_models, quieten_libraries
from img2prompt.generate.plan import PictureRequest
from img2prompt.generate.safety import SafetyScorer
from img2prompt.generate.schedulers import build_scheduler, sampler_name
from img2prompt.model.inference import one_thread
from img2prompt.model.precision import compute_dtype

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture that was made."""

    pixels: np.ndarray
    """uint8 (H, W, 3)."""
    nsfw: float | None
    """Score of the safety checker, 0 to below 1; None without a checker."""


class PicturePipeline:
    """A diffusers pipeline on a device.

    Raises:
        UserError: the checkpoint cannot be loaded, or does not have a configured setting.
    """

    def __init__(self, config: GenerateConfig, device: torch.device) -> None:
        check_dtype(config, device)
        self._config, self._device = config, device
        self._size = config.pipeline.batch_size
        self._pipe, self._safety = _load(config, device)
        self._settings = _call_settings(config, self._pipe)
        self.kind = type(self._pipe).__name__
        self.sampler = sampler_name(self._pipe.scheduler)

    @property
    def batch_size(self) -> int:
        """Pictures that are made at once."""
        return self._size

    def make(self, requests: Sequence[PictureRequest]) -> list[Picture | str]:
        """Return each picture, or the reason why there is none.

        A batch that runs out of memory is halved, and so are all that follow it.
        """
        results: list[Picture | str] = []
        while len(results) < len(requests):
            batch = requests[len(results) : len(results) + self._size]
            pixels = self._try(batch)
            if pixels is not None:
                results += self._judge(pixels[: len(batch)])
            elif self._size > 1:
                self._halve()
            else:
                reason = "out of memory: one picture does not fit on the device"
                results.append(f"{reason} ({self._device}); reduce its size, or slice the VAE")
        return results

    def _halve(self) -> None:
        before, self._size = self._size, self._size // 2
        logger.warning(
            "a batch of %d pictures ran out of memory: %d at once from here on. Set "
            "--pipeline.batch-size %d for pictures that are equal on any device",
            *(before, self._size, self._size),
        )

    def _try(self, batch: Sequence[PictureRequest]) -> Tensor | None:
        """Return pixels (B, 3, H, W) in 0 to 1, or None when the device's memory is too small."""
        try:
            return self._forward(batch)
        except torch.OutOfMemoryError:
            pass  # the exception holds tensors, so memory is freed after it
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def _forward(self, batch: Sequence[PictureRequest]) -> Tensor:
        filled = [*batch, *([batch[-1]] * (self._size - len(batch)))]
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in filled]
        negative = self._config.sampling.negative_prompt
        texts = {"prompt": [request.prompt for request in filled]}
        if negative:
            texts["negative_prompt"] = [negative] * len(filled)
        on_cpu = self._device.type == "cpu"
        with one_thread() if on_cpu else contextlib.nullcontext():
            output = self._pipe(**texts, **self._settings, generator=generators, output_type="pt")
        return output.images.float().cpu()

    def _judge(self, pixels: Tensor) -> list[Picture | str]:
        """Return pictures of pixels (B, 3, H, W), or the reasons why they are refused."""
        # The rounding is that of diffusers' own pictures (`VaeImageProcessor.numpy_to_pil`).
        levels = (pixels.permute(0, 2, 3, 1).numpy() * 255).round()
        reasons = [_pixels_reason(picture) for picture in levels]
        good = [
            picture.astype(np.uint8) for picture, r in zip(levels, reasons, strict=True) if not r
        ]
        scores = self._safety.scores(good) if self._safety and good else [None] * len(good)
        pictures = iter(map(Picture, good, scores))
        return [reason or _safe(next(pictures)) for reason in reasons]


def _pixels_reason(levels: np.ndarray) -> str | None:
    """Return why a picture of float levels 0 to 255 is unusable, or None."""
    bad = np.count_nonzero(~np.isfinite(levels))
    if bad:
        return (
            f"non-finite picture: {bad} of {levels.size} values are NaN or infinite; try "
            "--pipeline.dtype bf16 or fp32"
        )
    if levels.min() == levels.max():
        return f"blank picture: every value is {levels.flat[0]:g}"
    return None


def _safe(picture: Picture) -> Picture | str:
    if picture.nsfw is not None and picture.nsfw >= 1:
        return "unsafe picture: the checkpoint's safety checker flags it"
    return picture


def check_dtype(config: GenerateConfig, device: torch.device) -> None:
    """Refuse fp16 on a CPU, where it is slow or missing; `auto` must be resolved.

    Raises:
        UserError: the type does not fit the device.
    """
    dtype = config.pipeline.dtype
    assert dtype != "auto", "resolve the dtype first"
    if dtype == "fp16" and device.type == "cpu":
        raise UserError("pipeline.dtype is 'fp16'; allowed without a GPU: auto, fp32 or bf16")


def _load(config: GenerateConfig, device: torch.device) -> tuple[Any, SafetyScorer | None]:
    """Load the pipeline of a config onto a device, and the scorer of its safety checker."""
    quieten_libraries()
    from diffusers import AutoPipelineForText2Image

    folder, options = find_checkpoint(config), config.pipeline
    dtype = compute_dtype(options.dtype, device)
    models = load_models(folder, config.variant, dtype)
    pipeline_class: Any = AutoPipelineForText2Image
    try:
        pipe = pipeline_class.from_pretrained(
            str(folder), **models, dtype=dtype, local_files_only=True
        )
    except Exception as error:  # loaders fail in many ways on foreign files
        raise UserError(f"{folder} cannot be loaded as a pipeline: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    pipe.scheduler = build_scheduler(config.sampling, pipe.scheduler)
    pipe.watermark = None  # Stable Diffusion XL marks pictures when a certain package is installed
    scorer = _take_scorer(pipe) if options.safety_checker else None
    pipe.safety_checker = None
    _apply(config, pipe)
    return pipe, scorer


def _take_scorer(pipe: Any) -> SafetyScorer | None:
    checker = getattr(pipe, "safety_checker", None)
    return SafetyScorer(checker, pipe.feature_extractor) if checker is not None else None


def _apply(config: GenerateConfig, pipe: Any) -> None:
    """Apply memory layout, slicing and compilation."""
    options = config.pipeline
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    if options.channels_last:
        denoiser.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if options.attention_slicing:
        pipe.enable_attention_slicing()
    if options.vae_slicing:
        pipe.vae.enable_slicing()
    if options.compile:
        denoiser.compile(fullgraph=True)
        pipe.vae.decoder.compile(fullgraph=True)


def _call_settings(config: GenerateConfig, pipe: Any) -> dict[str, Any]:
    """Return the settings of a call of the pipeline.

    Raises:
        UserError: the pipeline does not have one of them.
    """
    sampling = config.sampling
    settings: dict[str, Any] = {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
    }
    sides = {"width": sampling.width, "height": sampling.height}
    settings |= {name: side for name, side in sides.items() if side}
    known = inspect.signature(pipe.__call__).parameters
    names = {*settings, *(["negative_prompt"] if sampling.negative_prompt else [])}
    if unknown := sorted(names - {*known}):
        raise UserError(f"{type(pipe).__name__} has no {', '.join(unknown)}: leave it unset")
    return settings
