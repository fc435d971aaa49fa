"""Plans against values computed by hand."""

import dataclasses

import pytest

from img2prompt import presets
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import PlanConfig
from img2prompt.data.vectors import DIMENSIONS
from img2prompt.model.towers.build import read_shape
from img2prompt.planning.nodes import Node
from img2prompt.planning.rates import Rate, Rates, forward_flop
from img2prompt.planning.stages import plan_stages
from img2prompt.train.estimate import row_cost

CONFIG = presets.demo_plan()
FOUR_CORES = Node(4)
SHAPE = read_shape(CONFIG.chain.finetune.tower)
RATES = Rates(
    prepare=Rate(0.01, "assumed"),
    decode=Rate(0.001, "measured in features/"),
    shard_bytes=Rate(10_000.0, "assumed"),
    machine_flops=Rate(1e12, "measured in features/"),
)


def stages(config=CONFIG, node=FOUR_CORES, pictures=1000, frozen=SHAPE):
    plans = plan_stages(config, SHAPE, frozen, node, RATES, pictures)
    return {plan.stage.split(" ")[0]: plan for plan in plans}


def test_shards_take_the_seconds_of_the_cores() -> None:
    plan = stages()["shards"]
    assert plan.seconds["cores"] == pytest.approx(1000 * 0.01 / 4)
    assert plan.bottleneck == "cores"
    assert plan.stored == 1000 * (10_000 + 4 * DIMENSIONS)


def test_features_take_the_flop_of_the_frozen_tower() -> None:
    plan = stages()["features"]
    expected = SHAPE.cost(PlanConfig(), half=False).forward
    views = len(CONFIG.chain.features.views)
    assert forward_flop(SHAPE) == expected
    assert plan.seconds["model"] == pytest.approx(1000 * expected * views / 1e12)


def test_features_may_be_of_other_towers_than_the_fine_tune() -> None:
    both = read_shape(TowerConfig(beside=("demo@32",), resize_positions=True))
    one, two = stages(), stages(frozen=both)
    flop = forward_flop(both) / forward_flop(SHAPE)
    assert flop > 1.2
    assert two["features"].seconds["model"] == pytest.approx(
        one["features"].seconds["model"] * flop
    )
    assert two["features"].stored == 2 * one["features"].stored
    assert two["lora"] == one["lora"]


def test_training_counts_epochs_and_training_rows_only() -> None:
    config = CONFIG.replace({"chain.finetune.optim.epochs": 3})
    plan = stages(config)["lora"]
    group = config.chain.prepare.group
    assert plan.rows == pytest.approx(3000 * (1 - group.val_fraction - group.test_fraction))
    cost = row_cost(config.chain.finetune, SHAPE, half=False)
    flop = cost.forward + cost.backward
    assert plan.seconds["model"] == pytest.approx(plan.rows * flop / 1e12)


@pytest.mark.parametrize(
    ("node", "bottleneck"),
    [
        (Node(1, 8, 1e18, 1e18), "cores"),
        (Node(10**6, 8, 1e9, 1e18), "model"),
        (Node(10**6, 8, 1e18, 1e3), "network"),
    ],
)
def test_the_slowest_limit_sets_the_rate(node, bottleneck) -> None:
    plan = stages(node=node)["features"]
    assert plan.bottleneck == bottleneck
    assert plan.rows_per_second == pytest.approx(1000 / plan.seconds[bottleneck])
    assert plan.hours == pytest.approx(plan.seconds[bottleneck] / 3600)


def test_gpus_count_by_their_peak_and_the_share_of_it() -> None:
    config = CONFIG.replace({"utilisation": 0.5, "nodes": 2})
    plan = stages(config, Node(10**6, 4, 1e12, 1e18))["features"]
    views = len(config.chain.features.views)
    assert plan.seconds["model"] == pytest.approx(
        1000 * forward_flop(SHAPE) * views / (2 * 4 * 0.5e12)
    )
    assert "50% of the GPUs' peak" in plan.sources


def test_twice_the_nodes_take_half_the_time() -> None:
    one, two = stages(), stages(dataclasses.replace(CONFIG, nodes=2))
    assert {n: p.hours for n, p in two.items()} == pytest.approx(
        {n: p.hours / 2 for n, p in one.items()}
    )
