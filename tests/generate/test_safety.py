"""Scores of the safety checker, against the checker itself."""

import numpy as np
import pytest
import torch

from img2prompt.generate.safety import SafetyScorer


@pytest.fixture(scope="module")
def checker():
    """A tiny checker with random weights and concepts."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    side = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = {**side, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config=vision, text_config={**side, "num_attention_heads": 2}, projection_dim=4
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(checker, name).data.normal_()
    return checker


@pytest.fixture(scope="module")
def extractor():
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def test_flagged_pictures_are_those_of_the_checker(checker, extractor) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (60, 1, 1, 3))
    noise = rng.integers(0, 60, (60, 40, 40, 3))
    pictures = list(np.clip(colours + noise, 0, 255).astype(np.uint8))
    inputs = extractor(pictures, return_tensors="pt").pixel_values
    set_thresholds(checker, inputs)
    scores = SafetyScorer(checker, extractor).scores(pictures)
    blank = [np.zeros((4, 4, 3)) for _ in pictures]
    _, flags = checker(clip_input=inputs, images=blank)
    assert [score == 1 for score in scores] == flags
    assert 0 < sum(flags) < len(flags)
    assert min(scores) >= 0
    assert max(score for score, flag in zip(scores, flags, strict=True) if not flag) < 1


@torch.no_grad()
def set_thresholds(checker, inputs: torch.Tensor) -> None:
    """Set thresholds that a few pictures exceed, some of them for their special care alone."""
    embeddings = checker.visual_projection(checker.vision_model(inputs)[1])
    for name, share in (("concept_embeds", 0.98), ("special_care_embeds", 0.8)):
        concepts = getattr(checker, name)
        cosines = torch.cosine_similarity(embeddings[:, None], concepts[None], dim=-1)
        getattr(checker, f"{name}_weights").data = cosines.quantile(share, dim=0)
