import dataclasses
import importlib
import json
import math
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from pydantic import Field

from img2prompt import cli, config, presets
from img2prompt.config.base import Config, differences, dotted
from img2prompt.config.chain import ChainConfig
from img2prompt.config.heads import HeadsConfig
from img2prompt.config.planning import ScaleConfig
from img2prompt.config.predict import EvaluateConfig, PredictConfig
from img2prompt.config.prepare import (
    CleanConfig,
    FeaturesConfig,
    GroupConfig,
    IndexConfig,
    PrepareConfig,
    ShardConfig,
)
from img2prompt.config.ranges import Fraction, FractionBelowOne, PositiveFraction, allowed
from img2prompt.config.recipe import RecipeConfig
from img2prompt.config.search import SearchConfig
from img2prompt.config.sources import PictureSource, SceneSource
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
    parts = (*parts, "recipe.negative_margin", "optim.layer_decay")
    parts = (*parts, "recipe.crop_area", "recipe.rand_augment_magnitude", "recipe.erase")
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


def test_all_mistakes_of_a_file_are_reported_at_once() -> None:
    text = '{"optim": {"lr": "fast"}, "head": {"width": 1.5}, "seed": null}'
    with pytest.raises(UserError) as caught:
        TrainConfig.from_json(text)
    lines = str(caught.value).splitlines()
    for name, value in [("optim.lr", "'fast'"), ("head.width", "1.5"), ("seed", "None")]:
        assert any(f"  {name}: " in line and value in line for line in lines)
    assert any("  name: Field required" in line for line in lines)


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
RIDGE = {"name": "a", "optim": OptimConfig(solver="ridge")}
RULES = [
    (CleanConfig, {"min_words": 9, "max_words": 8}, "min_words is 9; allowed: 1 to max_words"),
    (CleanConfig, {"max_side": 15}, "max_side is 15; allowed: 0 (any), or min_side or more"),
    (
        GroupConfig,
        {"val_fraction": 0.5, "test_fraction": 0.5},
        "val_fraction + test_fraction is 1.0; allowed: below 0.9",
    ),
    (ShardConfig, {"rows_per_shard": 63}, "rows_per_group is 64; allowed: 1 to rows_per_shard"),
    (PrepareConfig, {"name": "x", "sources": ()}, "sources is (); allowed: one source or more"),
    (
        PrepareConfig,
        {"name": "x", "sources": (SceneSource(name="a"), PictureSource(path="b", name="a"))},
        "sources is ['a', 'a']; allowed: names that differ",
    ),
    (HeadsConfig, {**PROBE, "widths": ()}, "widths is (); allowed: one value or more, each"),
    (HeadsConfig, {**PROBE, "dropouts": (0.1, 0.1)}, "dropouts is (0.1, 0.1); allowed: one value"),
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
    (EngineConfig, {"kind": "plain", "workers": 2}, "engine.workers is 2; allowed: "),
    (EngineConfig, {"workers": 2, "min_workers": 3}, "engine.min_workers is 3; allowed: 0 (not el"),
    (EngineConfig, {"kind": "plain", "min_workers": 1}, "engine.min_workers is 1; allowed: 0 (not"),
    (
        EngineConfig,
        {"precision": "fp16", "zero_stage": 1},
        "engine.zero_stage is 1; allowed: 0 with",
    ),
    (EngineConfig, {"compile": "on", "zero_stage": 3}, "engine.compile is 'on'; allowed: auto or"),
    (
        EngineConfig,
        {"skip_nonfinite": 1, "micro_batch": 8},
        "engine.skip_nonfinite is 1; allowed: 0",
    ),
    (
        TrainConfig,
        {"name": "a", "engine": EngineConfig(micro_batch=8), "head": HeadConfig(width=64)},
        "engine.micro_batch is 8; allowed: 0 with a wide head",
    ),
    (
        FeaturesConfig,
        {"views": ("flip",)},
        "views is ('flip',); allowed: one or more of plain, flip",
    ),
    (PictureSource, {"path": ""}, "path is ''; allowed: a file, a folder or a URI"),
    (TrainConfig, {"name": ""}, "name is ''; allowed: a folder name without slashes"),
    (TrainConfig, {"name": "a/b"}, "name is 'a/b'; allowed: a folder name without slashes"),
    (TrainConfig, {"name": "a", "start_from": "a"}, "start_from is 'a'; allowed: another run"),
    (EvaluateConfig, {"views": ()}, "views is (); allowed: one or more of plain, flip, each o"),
    (PredictConfig, {"views": ("flip", "flip")}, "views is ('flip', 'flip'); allowed: one or more"),
    (SearchConfig, {**RUNS, "head_widths": ()}, "head_widths is (); allowed: 1 or more values"),
    (
        SearchConfig,
        {**RUNS, "shares": (0.5,)},
        "shares is (0.5,); allowed: shares above 0 that rise",
    ),
    (SearchConfig, {**LEVELS, "probe": TrainConfig(name="p")}, "base.engine.kind is 'deepspeed'"),
    (OptimConfig, {"ridge_strengths": ()}, "ridge_strengths is (); allowed: 1 or more values"),
    (
        OptimConfig,
        {"ridge_strengths": (1.0, 1.0)},
        "optim.ridge_strengths is (1.0, 1.0); allowed: each strength once",
    ),
    (TrainConfig, {**RIDGE, "plan": PlanConfig(nfz_rate=0.5)}, "plan is (0.0, 0.5); allowed: a pr"),
    (
        TrainConfig,
        {**RIDGE, "head": HeadConfig(width=8)},
        "head.width is 8; allowed: 0 with optim.solver ridge",
    ),
    (TrainConfig, {**RIDGE, "head": HeadConfig(dropout=0.5)}, "head.dropout is 0.5; allowed: 0 wi"),
    (
        TrainConfig,
        {**RIDGE, "recipe": RecipeConfig(ema_decay=0.9), "engine": ALONE},
        "recipe.ema_decay is 0.9; allowed: 0 with optim.solver ridge",
    ),
    (
        TrainConfig,
        {**RIDGE, "recipe": RecipeConfig(loss="angular")},
        "recipe.loss is 'angular'; allowed: cosine with optim.solver ridge",
    ),
    (
        TrainConfig,
        {**RIDGE, "recipe": RecipeConfig(info_nce_weight=0.1)},
        "recipe.info_nce_weight is 0.1; allowed: 0 with optim.solver ridge",
    ),
    (RecipeConfig, {"negative_margin": -1.5}, "negative_margin is -1.5; allowed: -1 to 1"),
    (OptimConfig, {"layer_decay": 0.0}, "layer_decay is 0.0; allowed: above 0, at most 1"),
    (
        TrainConfig,
        {"name": "a", "optim": OptimConfig(solver="ridge", share=0.5)},
        "optim.share is 0.5; allowed: 1 with optim.solver ridge",
    ),
    (TrainConfig, {**RIDGE, "start_from": "b"}, "start_from is 'b'; allowed: empty with optim.so"),
    (
        TrainConfig,
        {**RIDGE, "engine": EngineConfig(mlflow="file:a")},
        "engine.mlflow is 'file:a'; allowed: empty with optim.solver ridge",
    ),
    (
        HeadsConfig,
        {"base": TrainConfig(**RIDGE, engine=ALONE)},
        "base.optim.solver is 'ridge'; allowed: adamw",
    ),
    (
        SearchConfig,
        {**RUNS, "base": TrainConfig(**RIDGE)},
        "base.optim.solver is 'ridge'; allowed: adamw",
    ),
]
"""Values that break a rule over several fields, a rule over the items of a field, or text."""


@pytest.mark.parametrize(
    ("kind", "fields", "message"), RULES, ids=[f"{k.__name__}-{m}" for k, _, m in RULES]
)
def test_a_broken_rule_is_reported_with_its_field_and_value(
    kind: type[Config], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        kind(**fields)
    assert message in str(caught.value)
    text = json.dumps(fields, default=lambda config: config.to_dict())
    with pytest.raises(UserError, match="is not a valid"):
        kind.from_json(text)


def config_types() -> list[type[Config]]:
    """Every class of img2prompt.config, also those that no preset uses."""
    for module in pkgutil.iter_modules(config.__path__, f"{config.__name__}."):
        importlib.import_module(module.name)
    kinds = [
        kind for kind in Config.__subclasses__() if kind.__module__.startswith(config.__name__)
    ]
    return sorted(kinds, key=lambda kind: kind.__name__)


REQUIRED: dict[type[Config], dict[str, Any]] = {
    ChainConfig: {
        "prepare": presets.demo_data(),
        "features": FeaturesConfig(),
        "probe": presets.probe_demo(),
        "finetune": presets.lora_demo(),
    },
    HeadsConfig: PROBE,
    IndexConfig: {"sources": (SceneSource(),)},
    PictureSource: {"path": "a.csv"},
    PrepareConfig: {"name": "x", "sources": (SceneSource(),)},
    ScaleConfig: {"chain": presets.demo_chain()},
    SearchConfig: RUNS,
    TrainConfig: {"name": "a"},
}
"""Fields without a default."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A numeric field, or the items of one that is a tuple, with its declared bounds."""

    kind: type[Config]
    name: str
    type: type
    is_item: bool
    bounds: dict[str, float]

    def outside(self) -> Iterator[tuple[float, float | None]]:
        """Yield the nearest values outside the range, each with the bound that it breaks."""
        for key, bound in self.bounds.items():
            if key in ("gt", "lt"):
                yield self.type(bound), bound
            elif self.type is int:
                yield int(bound) + (-1 if key == "ge" else 1), bound
            else:
                yield math.nextafter(bound, -math.inf if key == "ge" else math.inf), bound
        if self.type is float:
            yield math.nan, None


def numbers() -> Iterator[Number]:
    for kind in config_types():
        hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            hint, is_item = hints[field.name], False
            plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
            if get_origin(plain) is tuple:
                hint, is_item = get_args(plain)[0], True
                plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
            if plain in (int, float):
                metadata = hint.__metadata__[0].metadata if plain is not hint else []
                bounds = {
                    key: value for m in metadata for key, value in dataclasses.asdict(m).items()
                }
                yield Number(kind, field.name, plain, is_item, bounds)


OUTSIDE = [(number, value, bound) for number in numbers() for value, bound in number.outside()]


def test_every_number_declares_its_range() -> None:
    everything = list(numbers())
    assert len(everything) > 50
    assert [
        (n.kind.__name__, n.name) for n in everything if not {"ge", "gt"} & n.bounds.keys()
    ] == []


@pytest.mark.parametrize(
    ("number", "value", "bound"),
    OUTSIDE,
    ids=[f"{number.kind.__name__}-{number.name}-{value}" for number, value, _ in OUTSIDE],
)
def test_a_number_out_of_range_is_reported_with_field_value_and_range(
    number: Number, value: float, bound: float | None
) -> None:
    field_value = (value,) if number.is_item else value
    name = f"{number.name}.0" if number.is_item else number.name
    fields = REQUIRED.get(number.kind, {}) | {number.name: field_value}
    message = f"{name} is {value!r}; allowed: "
    with pytest.raises(UserError) as constructed:
        number.kind(**fields)
    with pytest.raises(UserError) as read:
        number.kind.from_json(json.dumps(fields, default=lambda config: config.to_dict()), "a.json")
    section = f"{number.kind.section}." if number.kind.section else ""
    assert str(constructed.value).startswith(f"{section}{message}")
    assert str(read.value).startswith(f"a.json is not a valid {number.kind.__name__}:\n  {message}")
    for error in (constructed, read):
        words = str(error.value).partition(message)[2]
        assert words
        assert bound is None or f"{bound:g}" in words


def test_a_section_is_named_by_its_place_in_a_file() -> None:
    tree = presets.demo_search().to_dict()
    tree["base"]["optim"]["epochs"] = 0
    tree["probe"]["engine"]["workers"] = 7
    tree["lora_rates"] = [0.5, 1.5]
    tree["nfz_rates"] = [-1]
    with pytest.raises(UserError) as caught:
        SearchConfig.from_json(json.dumps(tree), "a.json")
    assert str(caught.value).splitlines() == [
        "a.json is not a valid SearchConfig:",
        "  base.optim.epochs is 0; allowed: 1 or more",
        "  probe.engine: engine.workers is 7; allowed: 0 or 1 with engine.kind plain",
        "  lora_rates.1 is 1.5; allowed: 0 to 1",
        "  nfz_rates.0 is -1; allowed: 0 to 1",
    ]
    tree = presets.demo_data().to_dict()
    tree["sources"][0]["prompts"] = 0
    with pytest.raises(UserError, match=r"sources\.0\.SceneSource\.prompts is 0; allowed: 1 or"):
        PrepareConfig.from_json(json.dumps(tree))


def test_all_ranges_of_a_config_are_checked_at_once() -> None:
    with pytest.raises(UserError) as caught:
        OptimConfig(epochs=0, warmup=1.0, lr=math.nan)
    assert str(caught.value).splitlines() == [
        "optim.epochs is 0; allowed: 1 or more",
        "optim.lr is nan; allowed: above 0",
        "optim.warmup is 1.0; allowed: 0 or more, below 1",
    ]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[int, Field(ge=5)], "5 or more"),
        (Annotated[int, Field(ge=2, le=8)], "2 to 8"),
        (Annotated[float, Field(lt=0.5)], "below 0.5"),
        (Fraction, "0 to 1"),
        (PositiveFraction, "above 0, at most 1"),
        (FractionBelowOne, "0 or more, below 1"),
        (Annotated[tuple[int, ...], Field(min_length=2)], "2 or more values"),
        (Annotated[int, Field(ge=0, description="0 (none) or more")], "0 (none) or more"),
    ],
)
def test_a_range_is_put_into_words(annotation: Any, words: str) -> None:
    assert allowed(annotation) == words


def test_the_command_line_reports_a_number_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parse("", presets.TRAIN, arguments=["lora-demo", "--engine.hang-timeout", "4.5"])
    assert caught.value.code == 2
    assert "engine.hang_timeout is 4.5; allowed: 5 or more" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"lora_rates\.1 is 1\.5; allowed: 0 to 1"):
        cli.parse("", presets.SEARCH, arguments=["demo", "--lora-rates", "0", "1.5"])


def test_configs_can_be_pickled_and_replaced() -> None:
    config = presets.lora_demo()
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config.optim, epochs=2).epochs == 2
    with pytest.raises(UserError, match=r"optim\.epochs is 0; allowed: 1 or more"):
        dataclasses.replace(config.optim, epochs=0)


def test_differences_name_the_saved_and_the_requested_value() -> None:
    saved = {"a": {"b": 1, "c": 2}, "d": "x"}
    assert differences(saved, {"a": {"b": 1, "c": 3}}, "config") == [
        "config.a.c: saved 2, requested 3",
        "config.d: saved 'x', requested None",
    ]


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


@pytest.mark.parametrize(("name", "value"), [("evaluate.folds", 5), ("predict.abstain", 0.4)])
def test_a_chain_refuses_what_its_last_stages_would(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}; allowed: .* here: "):
        presets.demo_chain().replace({name: value})


def test_heads_are_a_grid_of_complete_probes() -> None:
    base = presets.probe_demo()
    config = HeadsConfig(base=base, widths=(0, 64), dropouts=(0.0, 0.5), lrs=(1e-3,))
    heads = config.heads()
    names = [f"width{w}-dropout{d}-lr0.001" for w, d in ((0, 0), (0, 0.5), (64, 0), (64, 0.5))]
    assert [head.name for head in heads] == names
    same = {"name": base.name, "head.width": 0, "head.dropout": 0.0}
    assert {head.replace(same) for head in heads} == {base.replace({"optim.head_lr": 1e-3})}
    assert (heads[3].head.width, heads[3].head.dropout) == (64, 0.5)
