"""Tiny pipelines and lists of prompts that the tests of this folder share."""

from pathlib import Path

import pytest
from tiny_pipelines import write_pipeline

from img2prompt.config.generate import GenerateConfig, PipelineConfig, SamplingConfig


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a pipeline like Stable Diffusion 1.5, with random weights; 32 pixels."""
    return write_pipeline("sd15", tmp_path_factory.mktemp("sd15"))


@pytest.fixture
def config(sd15: str, tmp_path: Path) -> GenerateConfig:
    """Two pictures of each of five prompts, in batches of two and shards of four."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return GenerateConfig(
        prompts=str(path),
        weights=sd15,
        pictures_per_prompt=2,
        pictures_per_shard=4,
        sampling=SamplingConfig(steps=2, guidance=5.0),
        pipeline=PipelineConfig(batch_size=2, dtype="fp32"),
        sheet=3,
    )


PROMPTS = (
    "a red cat on a roof",
    "the skyline of a city at night",
    "three violins in a field of wheat",
    "a bowl of ramen noodles",
    "portrait of an old sailor",
)
