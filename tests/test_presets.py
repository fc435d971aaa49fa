"""Every preset is a complete config that fits the others it is used with."""

import ast
import math
from itertools import chain
from pathlib import Path

import pytest

from img2prompt import presets
from img2prompt.config.average import AverageConfig
from img2prompt.config.base import Config
from img2prompt.config.chain import ChainConfig
from img2prompt.config.generate import GenerateConfig
from img2prompt.config.planning import ScaleConfig
from img2prompt.config.predict import (
    BlendConfig,
    CalibrateConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
)
from img2prompt.config.prepare import FeaturesConfig, PrepareConfig
from img2prompt.config.search import SearchConfig
from img2prompt.config.train import TrainConfig
from img2prompt.model.plan import layer_plan
from img2prompt.model.towers.build import DEMO_SHAPE

JOBS = Path(__file__).parents[1] / "jobs"
LAYERS = {
    "demo": 7,
    "fresh": 7,
    presets.LITE2.weights: 21,
    presets.L14.weights: 24,
    presets.L14_336.weights: 24,
}
SIDE = {
    "demo": DEMO_SHAPE["image_size"],
    presets.LITE2.weights: 260,
    presets.L14.weights: 224,
    presets.L14_336.weights: 336,
}
TABLES = {
    "PREPARE": PrepareConfig,
    "FEATURES": FeaturesConfig,
    "TRAIN": TrainConfig,
    "EVALUATE": EvaluateConfig,
    "PREDICT": PredictConfig,
    "AVERAGE": AverageConfig,
    "BLEND": BlendConfig,
    "CALIBRATE": CalibrateConfig,
    "EXPORT": ExportConfig,
    "CHAINS": ChainConfig,
    "SEARCH": SearchConfig,
    "GENERATE": GenerateConfig,
    "PLANS": ScaleConfig,
}
ALL = [(table, name) for table in TABLES for name in getattr(presets, table)]


def made(table: str, name: str) -> Config:
    return getattr(presets, table)[name]()


@pytest.mark.parametrize(("table", "name"), ALL)
def test_a_preset_survives_json(table: str, name: str) -> None:
    config = made(table, name)
    assert type(config) is TABLES[table]
    again = type(config).from_json(config.to_json())
    assert again == config
    assert again.fingerprint() == made(table, name).fingerprint()


@pytest.mark.parametrize("table", TABLES)
def test_presets_of_one_job_differ(table: str) -> None:
    configs = [made(table, name) for name in getattr(presets, table)]
    assert len({config.fingerprint() for config in configs}) == len(configs)


def test_jobs_use_presets_that_exist() -> None:
    used, defaults = set(), {}
    for file in JOBS.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "presets":
                used.add(node.attr)
                assert hasattr(presets, node.attr), f"{file.name}: presets.{node.attr}"
            if isinstance(node, ast.keyword) and node.arg == "default":
                assert isinstance(node.value, ast.Constant)
                defaults[file.stem] = node.value.value
    assert used >= set(TABLES)
    tables = {"demo": "CHAINS", "prepare": "PREPARE", "features": "FEATURES", "search": "SEARCH"}
    tables |= {"plan": "PLANS", "generate": "GENERATE"}
    for job, name in defaults.items():
        assert name in getattr(presets, tables[job])


@pytest.mark.parametrize("name", presets.CHAINS)
def test_stages_of_a_chain_fit_each_other(name: str) -> None:
    config = made("CHAINS", name)
    assert isinstance(config, ChainConfig)
    towers = [config.features.tower, config.probe.tower, config.finetune.tower]
    assert towers[0] == towers[1] == towers[2]
    assert config.prepare.shard.size == SIDE[towers[0].weights]
    assert config.probe.plan.frozen_tower
    assert not config.finetune.plan.frozen_tower
    assert config.finetune.start_from == config.probe.name
    assert config.finetune.head == config.probe.head


def test_probes_of_own_pictures_are_in_closed_form() -> None:
    solvers = {name: make().probe.optim.solver for name, make in presets.CHAINS.items()}
    assert solvers.pop("demo") == "adamw"
    assert set(solvers.values()) == {"ridge"}
    assert {make().probe.optim.solver for make in presets.SEARCH.values()} == {"adamw"}


def test_runs_share_the_tower_of_their_features() -> None:
    features = [make().tower for make in presets.FEATURES.values()]
    trained = [make() for make in presets.TRAIN.values()]
    for config in trained:
        assert config.tower in features or config.plan.embeddings
    names = [config.name for config in trained if config.plan.frozen_tower]
    assert {config.start_from for config in trained} == {"", *names}


def test_default_runs_are_those_that_the_presets_train() -> None:
    names = {make().name for make in presets.TRAIN.values()}
    assert set(EvaluateConfig().runs) <= names
    assert {PredictConfig().run, ExportConfig().run} <= names


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "probe-demo": (7, 0, 0),
        "lora-demo": (1, 3, 3),
        "probe-lite2": (21, 0, 0),
        "lora-lite2": (15, 6, 0),
        "probe-l14-336": (24, 0, 0),
        "lora-l14-336": (1, 14, 9),  # the published layout: layers 0, 1 to 14 and 15 to 23
        "lora-published": (1, 14, 9),
        "last-layers-l14": (18, 0, 6),
        "third-place": (0, 0, 24),
        "sixth-place": (0, 0, 24),
        "twelfth-place": (0, 0, 24),
        "tower": (0, 0, 7),
    }.items(),
)
def test_learning_layers(name: str, expected: tuple[int, int, int]) -> None:
    config = presets.TRAIN[name]()
    depth = LAYERS[config.tower.weights]
    plan = layer_plan(depth, config.plan.lora_rate, config.plan.nfz_rate)
    assert (len(plan.frozen), len(plan.lora), len(plan.trained)) == expected


@pytest.mark.parametrize("name", presets.TRAIN)
def test_steps_and_workers(name: str) -> None:
    config = presets.TRAIN[name]()
    # Batches can be shared by 1, 2, 4 or 8 workers.
    assert config.optim.batch_size % 8 == 0
    if config.plan.frozen_tower:
        assert (config.engine.kind, config.engine.workers) == ("plain", 1)


def test_the_demo_world_is_not_the_towers_world() -> None:
    demo, tower = presets.demo_data(), presets.tower_data()
    worlds = [source.world for source in chain(demo.sources, tower.sources)]
    assert worlds == ["demo", "tower"]
    assert demo.shard.size == tower.shard.size == DEMO_SHAPE["image_size"]
    rows = demo.sources[0].prompts * demo.sources[0].pictures_per_prompt
    assert math.ceil(rows / demo.shard.rows_per_shard) >= 2
