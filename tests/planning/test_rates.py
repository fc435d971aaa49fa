"""Rates that finished stages measured."""

import pytest

from img2prompt.config.prepare import FeaturesConfig, ShardConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.distributed.progress import StepTimes
from img2prompt.draft import Draft
from img2prompt.model.towers.build import read_shape
from img2prompt.planning.rates import ASSUMED, forward_flop, read_rates
from img2prompt.workspace import Stage, Workspace

FEATURES = FeaturesConfig(
    tower=TowerConfig(beside=("demo@32",), resize_positions=True), views=("plain", "flip")
)


@pytest.fixture(params=[FEATURES])
def out(tmp_path, request) -> str:
    """Folder with shards and features whose steps took known seconds."""
    workspace = Workspace(str(tmp_path))
    shards = Draft.open(workspace.shards, Stage.SHARDS, ShardConfig(size=64), {})
    times = StepTimes("shards", dict.fromkeys(("read", "decode", "encode", "write"), 2))
    times.add_rows(50, {"read": 1.0, "decode": 2.0, "encode": 3.0, "write": 4.0})
    times.keep(shards)
    shards.write_bytes("train/00000.parquet", b"x" * 5000, rows=50)
    shards.publish(train=50, val=0, test=0, rejected={})
    features = Draft.open(workspace.features, Stage.FEATURES, request.param, {})
    times = StepTimes("features", {"read": 2, "decode": 2, "forward": 4, "write": 1})
    times.add_rows(50, {"read": 0.5, "decode": 2.0, "forward": 8.0, "write": 0.1})
    times.keep(features)
    features.publish(pictures=50, rows=100)
    return str(tmp_path)


def test_rates_are_those_of_the_stages(out) -> None:
    rates = read_rates(out, size=64)
    assert rates.prepare.value == pytest.approx(10.0 / 50)
    assert rates.decode.value == pytest.approx(2.5 / 50)
    assert rates.shard_bytes.value == pytest.approx(5000 / 50)
    # Four models were busy for 8 s together: 2 s for 50 pictures in two views, by two towers.
    flop = sum(forward_flop(read_shape(tower)) for tower in FEATURES.tower.members)
    assert rates.machine_flops.value == pytest.approx(50 * 2 * flop / 2.0)
    assert rates.prepare.source == "measured in shards/"


def test_without_stages_rates_are_assumed(tmp_path) -> None:
    rates = read_rates(str(tmp_path / "absent"), size=100)
    assert {r.source for r in vars(rates).values()} == {ASSUMED}
    assert rates.shard_bytes.value > 0


@pytest.mark.parametrize(
    "out", [FeaturesConfig(tower=TowerConfig(weights="/absent"))], indirect=True
)
def test_features_of_a_tower_that_is_absent_give_no_rate_of_models(out) -> None:
    rates = read_rates(out, size=64)
    assert rates.machine_flops.source == ASSUMED
    assert rates.decode.value == pytest.approx(2.5 / 50)


def test_a_stage_that_had_nothing_left_to_do_measured_nothing(out, tmp_path) -> None:
    times = StepTimes("features", {"read": 1, "decode": 1, "forward": 1, "write": 1})
    times.keep(Draft.open(str(tmp_path / "features"), Stage.FEATURES, FEATURES, {}))
    assert read_rates(out, size=64).decode.source == ASSUMED
