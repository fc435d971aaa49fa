"""Scores of a checkpoint's safety checker."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

CARE = 0.01
"""Added to the cosines of a picture that is near one of the checker's concepts of special care."""


class SafetyScorer:
    """Scores pictures by diffusers' StableDiffusionSafetyChecker.

    The checker itself only flags pictures and blackens them: a picture is flagged when its CLIP
    embedding has a cosine above a concept's threshold. The score is the largest ratio of cosine to
    threshold.
    """

    def __init__(self, checker: Any, extractor: Any) -> None:
        self._checker, self._extractor = checker, extractor

    @torch.inference_mode()
    def scores(self, pictures: Sequence[np.ndarray]) -> list[float]:
        """Return a score for each picture (H, W, 3) uint8: 0 to 1, and 1 where it is flagged."""
        checker = self._checker
        weight = checker.visual_projection.weight
        pixels = self._extractor(list(pictures), return_tensors="pt").pixel_values
        pooled = checker.vision_model(pixels.to(weight.device, weight.dtype))[1]
        embeddings = normalize(checker.visual_projection(pooled).float())
        cosines = embeddings @ normalize(checker.concept_embeds.float()).T
        special = embeddings @ normalize(checker.special_care_embeds.float()).T
        near = _above(special, checker.special_care_embeds_weights).any(dim=1)
        cosines = cosines + CARE * near[:, None]
        flagged = _above(cosines, checker.concept_embeds_weights).any(dim=1)
        ratios = (cosines / checker.concept_embeds_weights.float()).amax(dim=1)
        # Only flagged pictures have the score 1, also where a cosine meets a threshold exactly.
        below = ratios.clamp(0, np.nextafter(np.float32(1), np.float32(0)))
        return torch.where(flagged, torch.ones_like(below), below).tolist()


def _above(cosines: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Return whether cosines exceed their thresholds, rounded to three digits as the checker's."""
    return (cosines - thresholds.float()).round(decimals=3) > 0
