"""The space of a search, compared with a plain count of layers."""

from itertools import product
from typing import Any

import pytest

from img2prompt import cli, presets
from img2prompt.config.search import SearchConfig
from img2prompt.config.train import TrainConfig
from img2prompt.errors import UserError
from img2prompt.model.plan import layer_plan
from img2prompt.search.space import Setting, choose, space_of, trial_config

RATES = (0.0, 0.1, 0.25, 0.3, 0.5, 0.55, 0.75, 1.0)


def search_of(**changes: Any) -> SearchConfig:
    return presets.demo_full_search().replace({"head_widths": (0, 512), **changes})


def counted(setting: Setting, depth: int) -> tuple[int, int, int]:
    plan = layer_plan(depth, setting.lora_rate, setting.nfz_rate)
    return len(plan.lora), len(plan.trained), setting.head_width


@pytest.mark.parametrize("depth", [4, 7])
def test_every_layout_is_in_the_space_once(depth: int) -> None:
    config = search_of(lora_rates=RATES, nfz_rates=RATES)
    space = space_of(config, depth)
    pairs = [(int(depth * lora), int(depth * nfz)) for lora, nfz in product(RATES, RATES)]
    expected = {(*pair, width) for pair in pairs if 0 < sum(pair) <= depth for width in (0, 512)}
    layouts = [counted(setting, depth) for setting in space.settings]
    assert sorted(layouts) == sorted(expected)
    assert space.points == 128
    assert space.overlapping == 2 * sum(sum(pair) > depth for pair in pairs)
    assert space.idle == 2 * sum(sum(pair) == 0 for pair in pairs)
    assert space.equal == 128 - space.overlapping - space.idle - len(expected) > 0


def test_a_fine_grid_over_24_layers_has_243_valid_plans() -> None:
    rates = [number / 20 for number in range(21)]
    config = search_of(lora_rates=rates, nfz_rates=rates, head_widths=(0,))
    space = space_of(config, 24)
    layers = [24 * number // 20 for number in range(21)]  # in whole numbers, not by rates
    valid = {(lora, top) for lora, top in product(layers, layers) if lora + top <= 24}
    assert space.points == 441
    assert len(valid) == 243
    assert {counted(setting, 24)[:2] for setting in space.settings} == valid - {(0, 0)}
    assert len(space.settings) == 242
    assert space.idle == 1, "the probe"


def test_fields_without_effect_make_no_setting() -> None:
    config = search_of(
        lora_rates=(0.0, 0.3),
        nfz_rates=(0.0, 0.3),
        head_widths=(0,),
        axes={"plan.lora_rank": "4,16", "optim.lr": "1e-4,5e-4"},
    )
    space = space_of(config, 7)
    points = {(s.lora_rate, s.nfz_rate, *dict(s.options).values()) for s in space.settings}
    with_lora = {(0.3, nfz, r, lr) for nfz in (0.0, 0.3) for r in (4, 16) for lr in (1e-4, 5e-4)}
    assert points == with_lora | {(0.0, 0.3, 4, 1e-4), (0.0, 0.3, 4, 5e-4)}
    assert space.equal == 2
    assert space.by_coordinates[0, 2, 0, 16, 1e-4] == space.by_coordinates[0, 2, 0, 4, 1e-4]
    assert len({setting.name for setting in space.settings}) == len(space.settings)


def test_points_that_are_not_valid_configs_are_named() -> None:
    config = search_of(
        head_widths=(0, 512), **{"base.engine.micro_batch": 16, "base.engine.workers": 1}
    )
    space = space_of(config, 7)
    assert {setting.head_width for setting in space.settings} == {0}
    assert len(space.refused) == len(space.settings)
    assert all("head512" in name for name, _ in space.refused)
    assert all("BatchNorm needs the whole global batch" in reason for _, reason in space.refused)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"optim.lrr": "1"}, "axes names 'optim.lrr'; allowed: plan.lora_rank, "),
        ({"optim.epochs": "2"}, "axes names 'optim.epochs'; allowed: plan.lora_rank, "),
        ({"plan.lora_rate": "0.1"}, "rates, the head's width and the epochs have options of their"),
        ({"tower.weights": "other"}, "axes names 'tower.weights'; allowed: "),
        ({"optim.lr": "1e-4,-1"}, "optim.lr is -1; allowed: above 0"),
        ({"optim.lr": "high"}, "unable to parse string as a number (got 'high')"),
        ({"plan.lora_rank": " , "}, "axes plan.lora_rank is ' , '; allowed: values with commas"),
        ({"plan.lora_init": "normal"}, "Input should be 'kaiming', 'published' or 'pissa'"),
    ],
)
def test_a_bad_axis_is_reported(axes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        search_of(axes=axes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lora_rates", (0.5, 1.5), "lora_rates.1 is 1.5; allowed: 0 to 1"),
        ("nfz_rates", (-0.1,), "nfz_rates.0 is -0.1; allowed: 0 to 1"),
        ("head_widths", (8, -1), "head_widths.1 is -1; allowed: 0 or more"),
        ("shares", (0.5,), "shares is (0.5,); allowed: shares above 0 that rise to 1.0"),
        ("shares", (0.5, 0.2, 1.0), "shares is (0.5, 0.2, 1.0); allowed: shares above 0 that"),
        ("seeds", 0, "seeds is 0; allowed: 1 or more"),
        ("max_hours", -1, "max_hours is -1; allowed: 0 (none) or more"),
        ("mfu", 1.5, "mfu is 1.5; allowed: above 0, at most 1"),
    ],
)
def test_a_value_out_of_range_is_reported(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        search_of(**{field: value})
    assert message in str(caught.value)


def test_a_trial_is_the_base_with_its_setting() -> None:
    config = search_of(axes={"plan.lora_rank": "4", "plan.lora_init": "published"})
    setting = Setting(0.25, 0.5, 64, (("plan.lora_rank", 4), ("plan.lora_init", "published")))
    assert Setting.from_dict(setting.to_dict()) == setting
    trial = trial_config(config, setting, share=0.5, repeat=2)
    name = "lora0.25-nfz0.5-head64-plan.lora_rank4-plan.lora_initpublished-share0.5-repeat2"
    expected = config.base.to_dict() | {"name": name, "seed": 2}
    ranks = {"lora_rank": 4, "lora_init": "published"}
    expected["plan"] |= {"lora_rate": 0.25, "nfz_rate": 0.5, **ranks}
    expected["head"] |= {"width": 64}
    expected["optim"] |= {"share": 0.5}
    assert trial.to_dict() == expected
    assert TrainConfig.from_json(trial.to_json()) == trial
    small = trial_config(config.replace({"base.optim.share": 0.5}), setting, share=0.5)
    assert small.optim.share == 0.25


def test_random_settings_are_drawn_by_the_seed() -> None:
    rates = (0.0, 0.25, 0.5, 0.75)
    config = search_of(lora_rates=rates, nfz_rates=rates, trials=5)
    space = space_of(config, 4)
    drawn = [choose(config.replace({"seed": seed}), space) for seed in range(8)]
    assert drawn == [choose(config.replace({"seed": seed}), space) for seed in range(8)]
    assert {len(set(settings)) for settings in drawn} == {5}
    assert all(set(settings) < set(space.settings) for settings in drawn)
    assert len({tuple(settings) for settings in drawn}) > 4
    assert choose(config.replace({"searcher": "grid"}), space) == list(space.settings)


def test_axes_are_given_on_the_command_line() -> None:
    words = ["demo", "--axes", "optim.lr", "1e-4,5e-4", "plan.lora_rank", "4,16"]
    config = cli.parse("", presets.SEARCH, arguments=words).config
    assert config.values == {"optim.lr": (1e-4, 5e-4), "plan.lora_rank": (4, 16)}
    with pytest.raises(UserError, match=r"axes names 'optim.lrr'; allowed: plan.lora_rank, "):
        cli.parse("", presets.SEARCH, arguments=["demo", "--axes", "optim.lrr", "1"])
