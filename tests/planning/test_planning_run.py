"""The tables of a plan."""

import pytest

from img2prompt import presets
from img2prompt.errors import UserError
from img2prompt.planning.run import tables

LARGE = presets.l14_336_plan().replace({"pictures": [400_000, 1_000_000_000]})


@pytest.fixture
def plan(tmp_path):
    return list(tables(LARGE.replace({"price": 98.0}), str(tmp_path)))


def test_clip_l_can_be_planned_without_its_checkpoint(plan) -> None:
    title, columns, rows = plan[0]
    assert title == "400,000 pictures on 1 x p5.48xlarge"
    by_stage = {str(row[0]): dict(zip(columns, row, strict=True)) for row in rows}
    assert list(by_stage) == ["targets", "shards", "features", "lora (3 epochs)", "all"]
    # ViT-L/14-336: 382 GFLOP a picture (open_clip's table has 191 G multiply-adds).
    rate = float(str(by_stage["features"]["rows/s"]).replace(",", ""))
    assert rate == pytest.approx(8 * 0.35 * 989e12 / 382e9, rel=0.02)


def test_money_is_hours_times_nodes_times_price(plan) -> None:
    _, columns, rows = plan[0]
    total = dict(zip(columns, rows[-1], strict=True))
    money = float(str(total["money"]).replace(",", ""))
    assert money == pytest.approx(98 * float(str(total["hours"])), rel=0.01)


def test_what_does_not_fit_the_driver_is_named(plan) -> None:
    titles = [title for title, _, _ in plan]
    assert "too large" not in titles[0]
    assert titles[1].endswith("too large for 64 GB: group, shard, probe (AdamW)")
    memory = {str(row[0]): row for row in plan[-1][2]}
    assert memory["group"][2] == f"{64 * 10**9 // (4 * 1536 + 6500):,} prompts"


def test_another_tower_that_is_absent_is_refused(tmp_path) -> None:
    config = LARGE.replace({"chain.finetune.tower.weights": str(tmp_path / "none")})
    with pytest.raises(UserError, match="none"):
        list(tables(config, str(tmp_path)))
