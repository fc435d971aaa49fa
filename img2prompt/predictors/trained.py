"""A finished training run as a predictor."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from img2prompt.artifact import Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.model.inference import compile_for_batches, prepare_for_inference
from img2prompt.model.prompt_model import load_probe, load_prompt_model
from img2prompt.predictors.base import ModulePredictor, Predictor, PredictorSpec


@dataclass(frozen=True)
class TrainedRun(PredictorSpec):
    """A finished run. A probe, which has a frozen tower, also answers from cached features."""

    run: Artifact

    @property
    def config(self) -> TrainConfig:
        return TrainConfig.from_json(json.dumps(self.run.config), where=self.run.uri)

    def fingerprints(self) -> Mapping[str, str]:
        return {"run": self.run.fingerprint}

    def check(self, shards: Artifact) -> None:
        self.run.require_input("shards", shards)
        load_prompt_model(self.run)

    def load(self, device: torch.device, *, compiled: bool = False) -> Predictor:
        model = load_prompt_model(self.run)
        prepare_for_inference(model, model.tower, device)
        if compiled:
            compile_for_batches(model, device)
        return ModulePredictor(model)

    def reads_features(self, features: Artifact) -> bool:
        same_tower = features.inputs["tower"] == self.run.inputs["tower"]
        return self.config.plan.frozen_tower and same_tower

    def load_head(self, device: torch.device) -> Predictor:
        return ModulePredictor(load_probe(self.run).to(device))
