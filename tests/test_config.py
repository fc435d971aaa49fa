import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from img2prompt import presets
from img2prompt.config.base import Config, dotted
from img2prompt.config.chain import ChainConfig
from img2prompt.config.heads import HeadsConfig
from img2prompt.config.predict import EvaluateConfig, PredictConfig
from img2prompt.config.prepare import (
    CleanConfig,
    FeaturesConfig,
    GroupConfig,
    PrepareConfig,
    ShardConfig,
)
from img2prompt.config.search import SearchConfig
from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import EngineConfig, HeadConfig, OptimConfig, PlanConfig, TrainConfig
from img2prompt.errors import UserError

PRESETS = {
    f"{table}[{name}]": make
    for table, makers in vars(presets).items()
    if table.isupper() and isinstance(makers, dict)
    for name, make in makers.items()
}


def other(value: Any) -> Any:
    """A value of the same type that differs."""
    return (not value) if isinstance(value, bool) else value * 2 + 1


def test_presets_are_found() -> None:
    assert {"PREPARE[demo]", "FEATURES[demo]", "TRAIN[lora-l14-336]"} <= PRESETS.keys()


@pytest.mark.parametrize("make", PRESETS.values(), ids=PRESETS.keys())
def test_every_preset_survives_json(make: Callable[[], Config]) -> None:
    config = make()
    again = type(config).from_json(config.to_json())
    assert again == config
    assert again.fingerprint() == config.fingerprint()
    assert json.loads(config.to_json()) == json.loads(json.dumps(config.to_dict()))
    assert dataclasses.asdict(again) == dataclasses.asdict(config)  # tuples stay tuples


def test_presets_of_a_kind_differ() -> None:
    prints = {name: make().fingerprint() for name, make in PRESETS.items()}
    assert len(set(prints.values())) == len(prints)


def test_the_fingerprint_follows_every_setting() -> None:
    config = presets.lora_demo()
    numbers = {k: v for k, v in dotted(config.to_dict()).items() if type(v) in (bool, int, float)}
    assert len(numbers) > 15
    parts = ("plan.lora_rate", "plan.nfz_rate", "plan.lora_dropout", "head.dropout")
    parts = (*parts, "optim.warmup", "optim.share", "recipe.flip", "recipe.ema_decay")
    small = dict.fromkeys(parts, 0.3)
    changed = [
        config.replace({name: small.get(name, 2 if name == "engine.zero_stage" else other(value))})
        for name, value in numbers.items()
    ]
    changed += [config.replace({"name": "x"}), config.replace({"engine.precision": "bf16"})]
    prints = {c.fingerprint() for c in [config, *changed]}
    assert len(prints) == len(changed) + 1
    assert config.replace({}).fingerprint() == config.fingerprint()


def test_the_fingerprint_does_not_see_how_a_number_is_written() -> None:
    text = presets.lora_demo().to_json()
    assert "0.0005" in text
    again = TrainConfig.from_json(text.replace("0.0005", "5e-4").replace("\n", " "))
    assert again.fingerprint() == presets.lora_demo().fingerprint()


def test_dotted_replace_changes_one_field_in_a_copy() -> None:
    config = presets.lora_demo()
    changed = config.replace({"plan.lora_rate": 0.25, "name": "trial", "optim.epochs": 3})
    before, after = dotted(config.to_dict()), dotted(changed.to_dict())
    assert {name for name in before if before[name] != after[name]} == {
        "plan.lora_rate",
        "name",
        "optim.epochs",
    }
    assert (changed.plan.lora_rate, changed.name, changed.optim.epochs) == (0.25, "trial", 3)
    assert config == presets.lora_demo()


@pytest.mark.parametrize("key", ["lr", "plan.rate", "name.lr", "plan.lora_rate.x", "", "plan."])
def test_replace_refuses_a_field_that_is_not_there(key: str) -> None:
    with pytest.raises(UserError, match=f"TrainConfig has no field {key!r}"):
        presets.lora_demo().replace({key: 1})


def test_replace_checks_its_values() -> None:
    with pytest.raises(UserError, match=r"optim\.lr is -1\.0; allowed: above 0"):
        presets.lora_demo().replace({"optim.lr": -1.0})
    with pytest.raises(UserError, match=r"optim\.epochs: .*integer.*got 'many'"):
        presets.lora_demo().replace({"optim.epochs": "many"})


def test_unknown_keys_are_refused_by_their_dotted_names() -> None:
    tree = presets.lora_demo().to_dict()
    tree["plan"]["lora_rte"] = 0.6
    tree["colour"] = "red"
    with pytest.raises(UserError) as caught:
        TrainConfig.from_json(json.dumps(tree), where="here.json")
    text = str(caught.value)
    assert text.startswith("here.json is not a valid TrainConfig")
    assert "plan.lora_rte: " in text
    assert "colour: " in text


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    text = '{"optim": {"lr": "fast"}, "head": {"width": 1.5}, "seed": null}'
    with pytest.raises(UserError) as caught:
        TrainConfig.from_json(text)
    told = str(caught.value)
    for name, value in [("optim.lr", "'fast'"), ("head.width", "1.5"), ("seed", "None")]:
        assert any(f"  {name}: " in line and value in line for line in told.splitlines())
    assert "  name: Field required" in told


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": "a"} x'])
def test_text_that_is_no_config_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match=r"run/config\.json is not a valid TrainConfig"):
        TrainConfig.from_json(text, where="run/config.json")


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets.lora_demo().optim.lr = 1.0  # type: ignore[misc]


RUNS = {"base": TrainConfig(name="lora"), "probe": TrainConfig(name="probe")}
ALONE = EngineConfig(kind="plain")
PROBE = {"base": TrainConfig(name="probe", engine=ALONE)}
LEVELS = {"base": TrainConfig(name="a", start_from="b"), "probe": PROBE["base"]}
BAD = [
    (SceneSource, {"prompts": 0}, "prompts is 0; allowed: 1 or more"),
    (SceneSource, {"pictures_per_prompt": 0}, "pictures_per_prompt is 0; allowed: >= 1"),
    (SceneSource, {"seed": -1}, "seed is -1; allowed: 0 or more"),
    (GroupConfig, {"seed": -1}, "seed is -1; allowed: 0 or more"),
    (TrainConfig, {"name": "a", "seed": -1}, "seed is -1; allowed: 0 or more"),
    (EvaluateConfig, {"seed": -1}, "seed is -1; allowed: 0 or more"),
    (EvaluateConfig, {"batch_size": 0}, "batch_size is 0; allowed: 1 or more"),
    (PredictConfig, {"batch_size": 0}, "batch_size is 0; allowed: 1 or more"),
    (SceneSource, {"size": 31}, "size is 31; allowed: 32 to 512"),
    (SceneSource, {"size": 513}, "size is 513; allowed: 32 to 512"),
    (CleanConfig, {"min_words": 0}, "min_words is 0; allowed: 1 to max_words"),
    (CleanConfig, {"min_words": 9, "max_words": 8}, "min_words is 9; allowed: 1 to max_words"),
    (CleanConfig, {"min_side": 0}, "min_side is 0; allowed: 1 pixel or more"),
    (CleanConfig, {"max_megapixels": 0.0}, "max_megapixels is 0.0; allowed: above 0"),
    (CleanConfig, {"max_side": 15}, "max_side is 15; allowed: 0 (any), or min_side or more"),
    (CleanConfig, {"max_symbols": 1.1}, "max_symbols is 1.1; allowed: 0 to 1"),
    (CleanConfig, {"max_nsfw": -0.1}, "max_nsfw is -0.1; allowed: 0 to 2"),
    (GroupConfig, {"duplicate_cosine": 1.1}, "duplicate_cosine is 1.1; allowed: (0, 1]"),
    (GroupConfig, {"split_cosine": 0.0}, "split_cosine is 0.0; allowed: (0, 1]"),
    (GroupConfig, {"val_fraction": 0.0}, "val_fraction is 0.0; allowed: above 0"),
    (GroupConfig, {"test_fraction": -0.1}, "test_fraction is -0.1; allowed: above 0"),
    (
        GroupConfig,
        {"val_fraction": 0.5, "test_fraction": 0.5},
        "val_fraction + test_fraction is 1.0; allowed: below 0.9",
    ),
    (ShardConfig, {"size": 15}, "size is 15; allowed: 16 to 1024"),
    (ShardConfig, {"size": 1025}, "size is 1025; allowed: 16 to 1024"),
    (ShardConfig, {"rows_per_group": 0}, "rows_per_group is 0; allowed: 1 to rows_per_shard"),
    (ShardConfig, {"rows_per_shard": 63}, "rows_per_group is 64; allowed: 1 to rows_per_shard"),
    (PrepareConfig, {"name": "x", "sources": ()}, "sources is (); allowed: one source or more"),
    (
        PrepareConfig,
        {"name": "x", "sources": (SceneSource(name="a"), PictureSource(path="b", name="a"))},
        "sources is ['a', 'a']; allowed: names that differ",
    ),
    (TowerConfig, {"image_size": -1}, "image_size is -1; allowed: 0 or a multiple"),
    (FeaturesConfig, {"batch_size": 0}, "batch_size is 0; allowed: 1 or more"),
    (FeaturesConfig, {"workers": -1}, "workers is -1; allowed: 0 or more"),
    (PlanConfig, {"lora_rate": -0.1}, "plan.lora_rate is -0.1; allowed: 0 to 1"),
    (PlanConfig, {"nfz_rate": 1.1}, "plan.nfz_rate is 1.1; allowed: 0 to 1"),
    (PlanConfig, {"lora_rank": 0}, "plan.lora_rank is 0; allowed: 1 or more"),
    (PlanConfig, {"lora_scale": 0.0}, "plan.lora_scale is 0.0; allowed: above 0"),
    (HeadConfig, {"width": -1}, "head.width is -1; allowed: 0 (linear) or more"),
    (HeadConfig, {"dropout": 1.0}, "head.dropout is 1.0; allowed: [0, 1)"),
    (HeadConfig, {"dropout": -0.1}, "head.dropout is -0.1; allowed: [0, 1)"),
    (HeadsConfig, {**PROBE, "widths": ()}, "widths is (); allowed: one value or more, each"),
    (HeadsConfig, {**PROBE, "widths": (-8,)}, "head.width is -8; allowed: 0 (linear) or more"),
    (HeadsConfig, {**PROBE, "dropouts": (0.1, 0.1)}, "dropouts is (0.1, 0.1); allowed: one value"),
    (HeadsConfig, {**PROBE, "lrs": (0.0,)}, "optim.head_lr is 0.0; allowed: above 0"),
    (HeadsConfig, {**PROBE, "keep": 0}, "keep is 0; allowed: 1 or more"),
    (HeadsConfig, {"base": TrainConfig(name="a")}, "base.engine.kind is 'deepspeed'; allowed: pl"),
    (
        HeadsConfig,
        {"base": TrainConfig(name="a", plan=PlanConfig(lora_rate=0.5))},
        "base.plan is (0.5, 0.0); allowed: a probe",
    ),
    (
        HeadsConfig,
        {"base": TrainConfig(name="a", start_from="b", engine=ALONE)},
        "base.start_from is 'b'; allowed: empty",
    ),
    (
        HeadsConfig,
        {"base": TrainConfig(name="a", engine=EngineConfig(kind="plain", mlflow="file:a"))},
        "base.engine.mlflow is 'file:a'; allowed: empty",
    ),
    (OptimConfig, {"epochs": 0}, "optim.epochs is 0; allowed: 1 or more"),
    (OptimConfig, {"batch_size": 0}, "optim.batch_size is 0; allowed: 1 or more"),
    (OptimConfig, {"lr": 0.0}, "optim.lr is 0.0; allowed: above 0"),
    (OptimConfig, {"lr": float("nan")}, "optim.lr is nan; allowed: above 0"),
    (OptimConfig, {"head_lr": -1.0}, "optim.head_lr is -1.0; allowed: above 0"),
    (OptimConfig, {"clip_norm": 0.0}, "optim.clip_norm is 0.0; allowed: above 0"),
    (OptimConfig, {"weight_decay": -0.1}, "optim.weight_decay is -0.1; allowed: 0 or more"),
    (OptimConfig, {"warmup": 1.0}, "optim.warmup is 1.0; allowed: [0, 1)"),
    (EngineConfig, {"workers": -1}, "engine.workers is -1; allowed: 0 (automatic) or more"),
    (EngineConfig, {"kind": "plain", "workers": 2}, "engine.workers is 2; allowed: "),
    (EngineConfig, {"workers": 2, "min_workers": 3}, "engine.min_workers is 3; allowed: 0 (not el"),
    (EngineConfig, {"kind": "plain", "min_workers": 1}, "engine.min_workers is 1; allowed: 0 (not"),
    (EngineConfig, {"resize_seconds": 0.0}, "engine.resize_seconds is 0.0; allowed: above 0"),
    (TrainConfig, {"name": ""}, "name is ''; allowed: a folder name without slashes"),
    (TrainConfig, {"name": "a/b"}, "name is 'a/b'; allowed: a folder name without slashes"),
    (TrainConfig, {"name": "a", "start_from": "a"}, "start_from is 'a'; allowed: another run"),
    (EvaluateConfig, {"neighbours": 0}, "neighbours is 0; allowed: 1 or more"),
    (EvaluateConfig, {"bootstrap": 99}, "bootstrap is 99; allowed: 100 or more"),
    (SearchConfig, {**RUNS, "lora_rates": ()}, "lora_rates is (); allowed: one rate or more"),
    (SearchConfig, {**RUNS, "nfz_rates": ()}, "nfz_rates is (); allowed: one rate or more"),
    (SearchConfig, {**RUNS, "head_widths": ()}, "head_widths is (); allowed: one width or more"),
    (SearchConfig, {**RUNS, "lora_rates": (0.5, 1.5)}, "lora_rates is (0.5, 1.5); allowed: one"),
    (SearchConfig, {**RUNS, "nfz_rates": (-0.1,)}, "nfz_rates is (-0.1,); allowed: one rate or"),
    (SearchConfig, {**RUNS, "head_widths": (8, -1)}, "head_widths is (8, -1); allowed: one width"),
    (SearchConfig, {**RUNS, "heads": 0}, "heads is 0; allowed: 1 or more"),
    (SearchConfig, {**LEVELS, "head_lrs": ()}, "lrs is (); allowed: one value or more"),
    (SearchConfig, {**LEVELS, "head_dropouts": (1.5,)}, "head.dropout is 1.5; allowed: [0, 1)"),
    (SearchConfig, {**LEVELS, "probe": TrainConfig(name="p")}, "base.engine.kind is 'deepspeed'"),
    (SearchConfig, {**RUNS, "trials": 0}, "trials is 0; allowed: 1 or more"),
    (SearchConfig, {**RUNS, "grace_epochs": 0}, "grace_epochs is 0; allowed: 1 or more"),
    (SearchConfig, {**RUNS, "reduction": 1}, "reduction is 1; allowed: 2 or more"),
    (SearchConfig, {**RUNS, "concurrent": -1}, "concurrent is -1; allowed: 0 (automatic) or"),
    (PredictConfig, {"nearest": 0}, "nearest is 0; allowed: 1 or more"),
]


@pytest.mark.parametrize(
    ("kind", "fields", "told"), BAD, ids=[f"{k.__name__}-{t}" for k, _, t in BAD]
)
def test_a_bad_value_is_told_with_field_value_and_range(
    kind: type[Config], fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        kind(**fields)
    assert told in str(caught.value)
    if not any(value != value for value in fields.values()):
        text = json.dumps(fields, default=lambda config: config.to_dict())
        with pytest.raises(UserError, match="is not a valid"):
            kind.from_json(text)


def test_values_at_the_edge_are_allowed() -> None:
    assert PlanConfig(lora_rate=0.6, nfz_rate=0.4).lora_rate == 0.6
    assert PlanConfig(lora_rate=0.65, nfz_rate=0.4).nfz_rate == 0.4  # the depth decides
    assert EngineConfig(kind="plain", workers=1).kind == "plain"
    assert EngineConfig(kind="plain").workers == 0  # automatic: one
    assert GroupConfig(duplicate_cosine=1.0, split_cosine=1.0).split_cosine == 1.0


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({}, True),
        ({"lora_rate": 0.1}, False),
        ({"nfz_rate": 0.1}, False),
        ({"embeddings": True}, False),
    ],
)
def test_only_a_plan_without_learning_is_a_probe(changes: dict[str, Any], frozen: bool) -> None:
    assert PlanConfig(**changes).frozen_tower is frozen


def test_sources_come_back_as_what_they_were() -> None:
    config = PrepareConfig(name="x", sources=(PictureSource(path="a.csv", name="a"), SceneSource()))
    assert PrepareConfig.from_json(config.to_json()).sources == config.sources
    with pytest.raises(UserError, match="sources"):
        config.replace({"sources": [{"kind": "tar", "name": "t"}]})


def test_a_chain_needs_the_probe_it_starts_from() -> None:
    chain = presets.demo_chain()
    assert isinstance(chain, ChainConfig)
    with pytest.raises(UserError, match=r"start_from is 'other'; allowed: empty or 'probe'"):
        chain.replace({"finetune.start_from": "other"})


def test_heads_are_a_grid_of_complete_probes() -> None:
    base = presets.probe_demo()
    config = HeadsConfig(base=base, widths=(0, 64), dropouts=(0.0, 0.5), lrs=(1e-3,))
    made = config.heads()
    names = [f"width{w}-dropout{d}-lr0.001" for w, d in ((0, 0), (0, 0.5), (64, 0), (64, 0.5))]
    assert [head.name for head in made] == names
    same = {"name": base.name, "head.width": 0, "head.dropout": 0.0}
    assert {head.replace(same) for head in made} == {base.replace({"optim.head_lr": 1e-3})}
    assert (made[3].head.width, made[3].head.dropout) == (64, 0.5)
