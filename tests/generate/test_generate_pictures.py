"""Pictures of a pipeline: equal to diffusers' own, and a function of prompt, seed and config."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipelines import write_pipeline

from img2prompt.config.generate import GenerateConfig, SamplingConfig
from img2prompt.errors import UserError
from img2prompt.generate.pictures import Picture, PicturePipeline
from img2prompt.generate.plan import PictureRequest

CPU = torch.device("cpu")
REQUESTS = [
    PictureRequest(f"{number}", prompt, 0, seed)
    for number, (prompt, seed) in enumerate([("a red cat", 7), ("b", 2**32 - 1), ("two dogs", 0)])
]


def pixels_of(results: list[Picture | str]) -> np.ndarray:
    """Return the pixels (N, H, W, 3) of pictures, none of which is rejected."""
    assert all(isinstance(result, Picture) for result in results), results
    return np.stack([result.pixels for result in results if isinstance(result, Picture)])


def bare_pixels(folder: str, request: PictureRequest, **settings) -> np.ndarray:
    """Return the pixels of one picture by diffusers alone, as its users would make it."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(request.seed)
    return np.array(pipeline(request.prompt, generator=generator, **settings).images[0])


@pytest.fixture
def pipeline(config: GenerateConfig) -> PicturePipeline:
    return PicturePipeline(config, CPU)


@pytest.mark.parametrize("family", ["sd15", "v-prediction", "sdxl"])
def test_pictures_equal_those_of_diffusers(
    config: GenerateConfig, tmp_path: Path, family: str
) -> None:
    folder = write_pipeline(family, tmp_path)
    made = PicturePipeline(config.replace({"weights": folder}), CPU).make(REQUESTS)
    alone = bare_pixels(folder, REQUESTS[1], num_inference_steps=2, guidance_scale=5.0)
    # The batch has two rows here and one there: kernels may round differently.
    assert np.abs(pixels_of(made)[1].astype(int) - alone).max() <= 1
    assert pixels_of(made).std(axis=(1, 2, 3)).min() > 5


def test_settings_reach_the_pipeline(config: GenerateConfig, sd15: str) -> None:
    sampling = SamplingConfig(steps=3, guidance=2.0, width=48, height=16, negative_prompt="blue")
    pipeline = PicturePipeline(config.replace({"sampling": sampling.to_dict()}), CPU)
    (picture,) = pixels_of(pipeline.make(REQUESTS[:1]))
    alone = bare_pixels(
        sd15,
        REQUESTS[0],
        num_inference_steps=3,
        guidance_scale=2.0,
        width=48,
        height=16,
        negative_prompt="blue",
    )
    assert picture.shape == (16, 48, 3)
    assert np.abs(picture.astype(int) - alone).max() <= 1


def test_a_picture_does_not_depend_on_its_batch_or_order(
    config: GenerateConfig, pipeline: PicturePipeline
) -> None:
    in_order = pixels_of(pipeline.make(REQUESTS))
    np.testing.assert_array_equal(pixels_of(pipeline.make(REQUESTS[::-1]))[::-1], in_order)
    np.testing.assert_array_equal(pixels_of(pipeline.make(REQUESTS[2:])), in_order[2:])
    assert (in_order[0] != in_order[1]).any()


def test_the_size_of_a_batch_changes_no_more_than_rounding(
    config: GenerateConfig, pipeline: PicturePipeline
) -> None:
    """Values differ by 7e-7 for some sizes of a batch, so its size is a setting of the pictures."""
    in_twos = pixels_of(pipeline.make(REQUESTS)).astype(int)
    for size in (1, 4):
        other = PicturePipeline(config.replace({"pipeline.batch_size": size}), CPU)
        assert np.abs(pixels_of(other.make(REQUESTS)) - in_twos).max() <= 1


@pytest.mark.parametrize("scheduler", ["k_euler_ancestral", "lcm", "dpm++", "plms"])
def test_schedulers_draw_noise_for_each_picture_alone(
    config: GenerateConfig, scheduler: str
) -> None:
    chosen = PicturePipeline(config.replace({"sampling.scheduler": scheduler}), CPU)
    together = pixels_of(chosen.make(REQUESTS[:2]))
    np.testing.assert_array_equal(pixels_of(chosen.make(REQUESTS[1:2]))[0], together[1])
    assert chosen.sampler == scheduler


def test_a_batch_that_runs_out_of_memory_is_halved(
    config: GenerateConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = PicturePipeline(config.replace({"pipeline.batch_size": 4}), CPU)
    expected = pixels_of(pipeline.make(REQUESTS)).astype(int)
    sizes = limit_memory(pipeline, monkeypatch, pictures=1)
    assert np.abs(pixels_of(pipeline.make(REQUESTS)) - expected).max() <= 1
    assert sizes == [4, 2, 1, 1, 1]
    assert "a batch of 4 pictures ran out of memory: 2 at once from here on" in caplog.text
    limit_memory(pipeline, monkeypatch, pictures=0)
    reasons = pipeline.make(REQUESTS)
    assert [str(reason).partition(":")[0] for reason in reasons] == ["out of memory"] * 3


def limit_memory(
    pipeline: PicturePipeline, monkeypatch: pytest.MonkeyPatch, pictures: int
) -> list[int]:
    """Let larger batches run out of memory; return the list of tried sizes, which grows."""
    sizes, call = [], pipeline._pipe

    def limited(**arguments):
        sizes.append(len(arguments["prompt"]))
        if sizes[-1] > pictures:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(**arguments)

    monkeypatch.setattr(pipeline, "_pipe", limited)
    return sizes


def test_unusable_pictures_have_reasons(
    pipeline: PicturePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.rand(3, 3, 4, 4)
    pixels[0], pixels[1, 0, 0, 0] = 0.0, torch.nan
    results = pipeline._judge(pixels)
    assert results[0] == "blank picture: every value is 0"
    assert str(results[1]).startswith("non-finite picture: 1 of 48 values are NaN")
    assert isinstance(results[2], Picture)

    class Flags:
        def scores(self, pictures) -> list[float]:
            return [1.0, 0.25][-len(pictures) :]

    monkeypatch.setattr(pipeline, "_safety", Flags())
    flagged, passed = pipeline._judge(torch.rand(2, 3, 4, 4))
    assert str(flagged).startswith("unsafe picture: ")
    assert isinstance(passed, Picture)
    assert passed.nsfw == 0.25


def test_bad_settings_are_refused(config: GenerateConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pipeline\.dtype is 'fp16'; allowed without a GPU"):
        PicturePipeline(config.replace({"pipeline.dtype": "fp16"}), CPU)
    with pytest.raises(UserError, match=r"sampling\.width is 36; allowed: 0, or a multiple of 8"):
        config.replace({"sampling.width": 36})


def test_slicing_and_layout_change_no_more_than_rounding(
    config: GenerateConfig, pipeline: PicturePipeline
) -> None:
    changes = {"channels_last": True, "attention_slicing": True, "vae_slicing": True}
    other = config.replace({f"pipeline.{name}": value for name, value in changes.items()})
    made = pixels_of(PicturePipeline(other, CPU).make(REQUESTS)).astype(int)
    assert np.abs(made - pixels_of(pipeline.make(REQUESTS))).max() <= 1


def test_denoiser_and_decoder_are_compiled(
    config: GenerateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def record(module: torch.nn.Module, **options) -> None:
        compiled.append(type(module).__name__)

    monkeypatch.setattr(torch.nn.Module, "compile", record)
    PicturePipeline(config.replace({"pipeline.compile": True}), CPU)
    assert compiled == ["UNet2DConditionModel", "Decoder"]
