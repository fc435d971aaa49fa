"""Every setting of every stage: frozen dataclasses that go to JSON and back.

A complete config is saved beside every result, and its fingerprint decides whether a folder
belongs to the run that is asked for. Checks live here, so a config that exists is a valid one.
"""

from img2prompt.config.base import Config
from img2prompt.config.data import (
    CleanConfig,
    FeaturesConfig,
    GroupConfig,
    IndexConfig,
    PrepareConfig,
    ShardConfig,
    TargetsConfig,
    TowerConfig,
)
from img2prompt.config.heads import HeadsConfig
from img2prompt.config.jobs import (
    ChainConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
)
from img2prompt.config.search import SearchConfig
from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.config.train import EngineConfig, HeadConfig, OptimConfig, PlanConfig, TrainConfig

__all__ = [
    "ChainConfig",
    "CleanConfig",
    "Config",
    "EngineConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FeaturesConfig",
    "GroupConfig",
    "HeadConfig",
    "HeadsConfig",
    "IndexConfig",
    "OptimConfig",
    "PictureSource",
    "PlanConfig",
    "PredictConfig",
    "PrepareConfig",
    "SceneSource",
    "SearchConfig",
    "ShardConfig",
    "TargetsConfig",
    "TowerConfig",
    "TrainConfig",
]
