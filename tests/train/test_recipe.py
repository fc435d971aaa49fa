"""Recipes: averaged weights, flips, and techniques that only these tests know."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from tiny import CPU, MemoryRows, Trained, assert_close, average_of, config_of, model_of, run_loop
from torch import Tensor

from img2prompt.config.prepare import ShardConfig
from img2prompt.config.recipe import RecipeConfig
from img2prompt.config.train import PlanConfig, TrainConfig
from img2prompt.data.order import epoch_batches, worker_share
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.average import WeightAverage
from img2prompt.model.l2_sp import pretrained_tensors
from img2prompt.model.loss import cosine_loss
from img2prompt.model.prompt_model import WEIGHTS, learned_state
from img2prompt.storage import read_bytes
from img2prompt.train.batches import (
    DeviceBatch,
    WorkerRank,
    gather_prompts,
    split_batch,
    to_device,
)
from img2prompt.train.checkpoint import (
    Checkpoint,
    CheckpointStore,
    Position,
    best_weights,
    score_columns,
)
from img2prompt.train.engines.base import Engine
from img2prompt.train.engines.plain import PlainEngine
from img2prompt.train.job import TrainInputs, guarded_prompts
from img2prompt.train.recipe import Recipe, build_recipe, cosine
from img2prompt.train.run import publish
from img2prompt.train.steplog import StepLog
from img2prompt.train.validation import Candidate, validate

TRAIN, VAL = MemoryRows(53, seed=1), MemoryRows(21, seed=2)
DECAY = 0.9


@pytest.fixture(scope="module", params=[0, 24], ids=["linear", "wide"])
def config(request: pytest.FixtureRequest, tiny_tower: str) -> TrainConfig:
    changes = {"engine__save_every": 2, "recipe__ema_decay": DECAY, "recipe__flip": 0.5}
    return config_of(tiny_tower, width=request.param, **changes)


@pytest.fixture(scope="module")
def whole(config: TrainConfig) -> Trained:
    return run_loop(config, TRAIN, VAL)


class Noted(Recipe):
    """The recipe of a config that also notes the weights after each step."""

    def after_step(self, engine: Engine) -> None:
        super().after_step(engine)
        state = learned_state(engine.module)
        self.__dict__.setdefault("steps", []).append({n: t.clone() for n, t in state.items()})


def test_the_average_of_a_run_is_the_one_computed_by_hand(config: TrainConfig) -> None:
    recipe = Noted(**vars(build_recipe(config)))
    run = run_loop(config, TRAIN, VAL, recipe=recipe)
    steps = recipe.__dict__["steps"]
    assert len(steps) == 9
    expected = steps[0]
    for number, weights in enumerate(steps[1:], 2):
        keep = min(DECAY, (number - 1) / (number + 8))
        expected = {
            name: keep * expected[name] + (1 - keep) * tensor
            if tensor.is_floating_point()
            else tensor
            for name, tensor in weights.items()
        }
    found = average_of(run.saved[-1])
    assert run.saved[-1].recipe["ema/updates"] == 9
    assert_close(found, expected, atol=1e-6)


def test_averaged_weights_are_validated_beside_the_raw_ones(
    config: TrainConfig, whole: Trained
) -> None:
    for row, checkpoint in zip(whole.reported, whole.saved[1::2], strict=True):
        engine = PlainEngine(model_of(config), config, 9, CPU)
        recipe = build_recipe(config)
        recipe.load(checkpoint.recipe)
        for name, weights in (
            ("val_cosine/raw", checkpoint.engine.model),
            ("val_cosine/ema", recipe.weights_to_validate()["ema"]),
        ):
            engine.module.load_state_dict(dict(weights), strict=False)
            (score,) = validate([Candidate(engine)], VAL, WorkerRank(), batch_size=21)
            assert score == pytest.approx(row[name], abs=1e-6)
        assert row["val_cosine/raw"] != row["val_cosine/ema"]
        assert row["val_cosine"] == max(row["val_cosine/raw"], row["val_cosine/ema"])


def test_validating_an_average_does_not_change_training(
    config: TrainConfig, whole: Trained
) -> None:
    plain = run_loop(config.replace({"recipe.ema_decay": 0.0}), TRAIN, VAL)
    for ours, theirs in zip(whole.reported, plain.reported, strict=True):
        assert ours["train_loss"] == theirs["train_loss"]
        assert ours["val_cosine/raw"] == theirs["val_cosine"]
    assert_close(whole.saved[-1].engine.model, plain.saved[-1].engine.model, atol=0)
    assert plain.saved[-1].recipe == {}


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_resumed_run_continues_its_recipe_exactly(
    config: TrainConfig, whole: Trained, number: int, tmp_path: Path
) -> None:
    """Resume from a checkpoint on disk, inside an epoch and after one."""
    store = CheckpointStore(str(tmp_path))
    store.write(whole.saved[number])
    start = store.newest()
    assert start is not None
    rest = run_loop(config, TRAIN, VAL, start=start)
    for ours, theirs in zip(rest.reported, whole.reported[start.position.epoch :], strict=True):
        columns = ("epoch", "train_loss", "val_cosine/raw", "val_cosine/ema")
        assert [ours[name] for name in columns] == [theirs[name] for name in columns]
    for tensors, expected in (
        (rest.saved[-1].recipe, whole.saved[-1].recipe),
        (rest.saved[-1].engine.model, whole.saved[-1].engine.model),
    ):
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_picture_is_flipped_alike_for_any_number_of_workers(config: TrainConfig) -> None:
    recipe, position = build_recipe(config), Position(epoch=1, step=1)
    numbers = epoch_batches(TRAIN.group_sizes, config.seed, 1, 16)[1]

    def augmented(numbers: np.ndarray, parts: int) -> Tensor:
        batches = split_batch(TRAIN.fetch(numbers), parts)
        return torch.cat([recipe.augment(to_device(b, CPU), position).inputs for b in batches])

    whole = augmented(numbers, parts=1)
    shares = [worker_share(numbers, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([augmented(share, parts=2) for share in shares]), whole)
    pixels = torch.from_numpy(TRAIN.pixels[numbers])
    flipped = [not torch.equal(a, b) for a, b in zip(whole, pixels, strict=True)]
    assert 0 < sum(flipped) < len(flipped)
    later = recipe.augment(to_device(TRAIN.fetch(numbers), CPU), Position(epoch=2)).inputs
    assert not torch.equal(later, whole)


AUGMENTED = {
    "recipe__crop_area": 0.5,
    "recipe__flip": 0.5,
    "recipe__rand_augment": 2,
    "recipe__erase": 0.5,
}


def test_augmentations_are_alike_for_any_number_of_workers_and_parts(tiny_tower: str) -> None:
    recipe, position = build_recipe(config_of(tiny_tower, **AUGMENTED)), Position(epoch=1, step=1)
    numbers = np.arange(16)

    def augmented(parts: int, at: Position = position) -> Tensor:
        batches = split_batch(TRAIN.fetch(numbers), parts)
        return torch.cat([recipe.augment(to_device(b, CPU), at).inputs for b in batches])

    whole = augmented(1)
    assert (whole.dtype, whole.shape) == (torch.uint8, (16, 32, 32, 3))
    for parts in (2, 3, 16):
        assert torch.equal(augmented(parts), whole)
    assert torch.equal(augmented(1, Position(epoch=1, step=5)), whole)
    later = augmented(1, Position(epoch=2))
    assert all(not torch.equal(a, b) for a, b in zip(whole, later, strict=True))


def test_pictures_of_guarded_prompts_are_not_flipped(tiny_tower: str) -> None:
    config = config_of(tiny_tower, recipe__flip=1.0, recipe__flip_guard=True)
    recipe = build_recipe(config, guarded={"prompt-3", "prompt-7"})
    batch = to_device(TRAIN.fetch(np.arange(2, 9)), CPU)
    changed = recipe.augment(batch, Position()).inputs
    for row, number in enumerate(range(2, 9)):
        pixels = batch.inputs[row]
        expected = pixels if number in (3, 7) else pixels.flip(1)
        assert torch.equal(changed[row], expected)


def test_the_guarded_prompts_are_those_of_the_targets(tiny_tower: str, tmp_path: Path) -> None:
    draft = Draft.open(str(tmp_path / "targets"), "targets", ShardConfig(), {})
    texts = ["a cat on the left", "bright lights", "RIGHT-handed", "a dog"]
    for number in range(2):
        own = texts[2 * number : 2 * number + 2]
        ids = [f"id-{2 * number}", f"id-{2 * number + 1}"]
        draft.write_table(f"rows-{number:05d}.parquet", pa.table({"prompt_id": ids, "prompt": own}))
    targets = draft.publish()
    shards = Draft.open(str(tmp_path / "shards"), "shards", ShardConfig(), {}).publish()
    config = config_of(tiny_tower, recipe__flip=0.5, recipe__flip_guard=True)
    inputs = TrainInputs(shards, targets=targets)
    assert guarded_prompts(config, inputs) == {"id-0", "id-2"}
    assert guarded_prompts(config.replace({"recipe.flip_guard": False}), inputs) == frozenset()


def test_an_augmented_run_resumes_exactly(tiny_tower: str) -> None:
    config = config_of(tiny_tower, engine__save_every=2, **AUGMENTED)
    whole = run_loop(config, TRAIN, VAL)
    rest = run_loop(config, TRAIN, VAL, start=whole.saved[2])
    assert rest.reported[-1]["train_loss"] == whole.reported[-1]["train_loss"]
    assert_close(rest.saved[-1].engine.model, whole.saved[-1].engine.model, atol=0)
    plain = run_loop(config_of(tiny_tower), TRAIN, VAL)
    assert plain.reported[-1]["train_loss"] != whole.reported[-1]["train_loss"]


def test_flips_are_for_training_only(config: TrainConfig) -> None:
    """Validation reads pictures unchanged; flipping all equals training on mirrored pictures."""
    always = config.replace({"recipe.flip": 1.0, "recipe.ema_decay": 0.0})
    run = run_loop(always, TRAIN, VAL)
    engine = PlainEngine(run.model, always, 9, CPU)
    (score,) = validate([Candidate(engine)], VAL, WorkerRank(), batch_size=21)
    assert score == pytest.approx(run.reported[-1]["val_cosine"], abs=1e-6)
    mirrored = MemoryRows(53, seed=1)
    mirrored.pixels = mirrored.pixels[:, :, ::-1].copy()
    by_data = run_loop(always.replace({"recipe.flip": 0.0}), mirrored, VAL)
    assert by_data.reported[-1]["train_loss"] == run.reported[-1]["train_loss"]


def test_the_default_recipe_is_the_cosine_loss_alone(tiny_tower: str) -> None:
    recipe = build_recipe(config_of(tiny_tower))
    assert recipe == Recipe()
    batch = to_device(TRAIN.fetch(np.arange(5)), CPU)
    assert recipe.augment(batch, Position()) is batch
    predicted = torch.rand(5, 384)
    loss, parts = recipe.loss(predicted, batch)
    assert (loss.item(), parts) == (cosine_loss(predicted, batch.targets).item(), {})
    assert (recipe.state(), recipe.weights_to_validate()) == ({}, {})


def test_a_new_technique_needs_no_change_of_the_loop(tiny_tower: str) -> None:
    """A loss of two parts that reads prompt ids, an augmentation, and two averages."""
    seen: set[str] = set()

    def loss(predicted: Tensor, batch: DeviceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        seen.update(batch.prompt_ids)
        direction, _ = cosine(predicted, batch)
        length = (predicted.norm(dim=1) - 1).square().mean()
        return direction + 0.1 * length, {"direction": direction, "length": length}

    def darken(batch: DeviceBatch, position: Position) -> DeviceBatch:
        return replace(batch, inputs=batch.inputs // 2)

    averages = {"fast": WeightAverage(0.5), "slow": WeightAverage(0.99)}
    recipe, lines = Recipe(loss, darken, averages), []

    class Lines(StepLog):
        def epoch(self, row, step) -> None:
            lines.append(self.line(step=step))

    config = config_of(tiny_tower, engine__micro_batch=4)
    run = run_loop(config, TRAIN, VAL, recipe=recipe, log=Lines())
    columns = ["val_cosine", "val_cosine/raw", "val_cosine/fast", "val_cosine/slow"]
    assert [name for name in run.reported[-1] if name.startswith("val_cosine")] == columns
    assert seen <= {f"prompt-{row}" for row in range(53)}
    assert len(seen) > 40
    prefixes = {name.split("/")[0] for name in run.saved[-1].recipe}
    assert prefixes == {"fast", "slow"}
    assert run.reported[-1]["train_loss"] < run.reported[0]["train_loss"]


def test_the_parts_of_a_loss_are_logged() -> None:
    log = StepLog()
    log.add(0.5, 8, {"direction": 0.4, "length": 1.0})
    log.add(0.2, 4, {"direction": 0.1, "length": 0.4})
    line = log.line(step=2)
    assert line["loss"] == pytest.approx(0.4)
    assert line["loss/direction"] == pytest.approx(0.3)
    assert line["loss/length"] == pytest.approx(0.8)
    log.add(0.5, 8)
    assert not any(name.startswith("loss/") for name in log.line(step=3))


BATCH_LOSSES = {
    "recipe__loss": "angular",
    "recipe__mse_weight": 0.1,
    "recipe__negative_weight": 0.3,
    "recipe__negative_margin": -0.5,
    "recipe__info_nce_weight": 0.2,
    "recipe__l2_sp": 0.05,
}


def test_parts_of_a_batch_have_the_losses_of_the_whole_batch(tiny_tower: str) -> None:
    config = config_of(tiny_tower, **BATCH_LOSSES)
    whole = run_loop(config, TRAIN, VAL)
    parts = run_loop(config.replace({"engine.micro_batch": 3}), TRAIN, VAL)
    for ours, theirs in zip(parts.reported, whole.reported, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-5)
    assert_close(parts.saved[-1].engine.model, whole.saved[-1].engine.model, atol=1e-4)


def test_a_resumed_run_is_pulled_to_the_pretrained_weights(tiny_tower: str) -> None:
    config = config_of(tiny_tower, engine__save_every=2, **BATCH_LOSSES)
    whole = run_loop(config, TRAIN, VAL)
    rest = run_loop(config, TRAIN, VAL, start=whole.saved[2])
    assert rest.reported[-1]["train_loss"] == whole.reported[-1]["train_loss"]
    assert_close(rest.saved[-1].engine.model, whole.saved[-1].engine.model, atol=0)
    free = run_loop(config.replace({"recipe.l2_sp": 0.0}), TRAIN, VAL)
    start = pretrained_tensors(model_of(config))
    distances = [
        sum((run.saved[-1].engine.model[name] - start[name]).square().sum() for name in start)
        for run in (whole, free)
    ]
    assert distances[0] < distances[1]


def test_the_terms_of_a_loss_add_up(tiny_tower: str) -> None:
    recipe = build_recipe(config_of(tiny_tower, **BATCH_LOSSES))
    rows = TRAIN.fetch(np.arange(8))
    rows.prompt_ids[1] = rows.prompt_ids[0]
    prompts = gather_prompts(rows, 8, WorkerRank(), CPU)
    assert len(prompts.keys) == 7
    own = prompts.positions(rows.prompt_ids)
    expected = torch.from_numpy(rows.targets)
    assert torch.equal(prompts.targets[own][[0, 2, 7]], expected[[0, 2, 7]])
    assert own[1] == own[0]
    predicted = torch.rand(8, 384)
    loss, parts = recipe.loss(predicted, to_device(rows, CPU, prompts))
    assert parts.keys() == {"angular", "mse", "negative", "info_nce"}
    weighted = parts["mse"] * 0.1 + parts["negative"] * 0.3 + parts["info_nce"] * 0.2
    torch.testing.assert_close(loss, parts["angular"] + weighted)


@pytest.mark.parametrize("scores", [(0.5, 0.4), (0.5, 0.6), (0.5, 0.5)])
def test_the_better_of_raw_and_averaged_weights_is_published(
    config: TrainConfig, whole: Trained, tmp_path: Path, scores: tuple[float, float]
) -> None:
    last = whole.saved[-1]
    row = {"epoch": 3, **score_columns({"raw": scores[0], "ema": scores[1]})}
    position = replace(last.position, history=[row])
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    store.write(Checkpoint(position, last.engine, last.recipe))
    draft = Draft.open(str(tmp_path / "run"), "train", config, {})
    run = publish(draft, config, store, seconds=1.0)
    published = safetensors.torch.load(read_bytes(run.path(WEIGHTS)))
    assert run.counts["val_cosine"] == max(scores)
    averaged = scores[1] > scores[0]
    assert json.loads(read_bytes(run.path("metrics.json")))["weights"] == (
        "ema" if averaged else "raw"
    )
    expected = average_of(last) if averaged else dict(last.engine.model)
    assert_close(published, expected, atol=0)


def test_the_best_score_of_an_epoch_may_be_that_of_an_average() -> None:
    assert score_columns({"raw": 0.3}) == {"val_cosine": 0.3}
    assert best_weights({"epoch": 1, "val_cosine": 0.3}) == "raw"
    row = score_columns({"raw": 0.3, "ema": 0.4})
    assert row == {"val_cosine": 0.4, "val_cosine/raw": 0.3, "val_cosine/ema": 0.4}
    assert best_weights(row) == "ema"
    assert best_weights(score_columns({"raw": 0.3, "ema": 0.3})) == "raw"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"recipe.flip": 1.5}, r"recipe\.flip is 1\.5; allowed: 0 to 1"),
        ({"recipe.flip": -0.1}, r"recipe\.flip is -0\.1; allowed: 0 to 1"),
        ({"recipe.ema_decay": 1.0}, r"recipe\.ema_decay is 1\.0; allowed: "),
        (
            {"recipe.l2_sp": 0.1, "engine.kind": "deepspeed", "engine.zero_stage": 3},
            r"recipe\.l2_sp is 0\.1; allowed: 0 with engine\.zero_stage 3, which leaves",
        ),
        (
            {"recipe.l2_sp": 0.1, "plan.lora_rate": 0.0},
            r"recipe\.l2_sp is 0\.1; allowed: 0 for a probe",
        ),
        ({"recipe.loss": "l2"}, r"recipe\.loss.*'cosine'"),
        (
            {"recipe.flip": 0.5, "plan.lora_rate": 0.0, "plan.nfz_rate": 0.0},
            r"recipe\.flip is 0\.5; allowed: 0 for a probe: .*features\.views",
        ),
        (
            {"recipe.crop_area": 0.5, "plan.lora_rate": 0.0},
            r"recipe\.crop_area is 0\.5; allowed: 1 for a probe: it reads cached features",
        ),
        ({"recipe.rand_augment_magnitude": 11.0}, r"magnitude is 11\.0; allowed: 0 to 10"),
        (
            {"recipe.ema_decay": 0.9, "engine.kind": "deepspeed", "engine.zero_stage": 3},
            r"recipe\.ema_decay is 0\.9; allowed: 0 with engine\.zero_stage 3, which leaves",
        ),
    ],
)
def test_bad_settings_are_refused(changes: dict, reason: str) -> None:
    config = TrainConfig(name="x", plan=PlanConfig(lora_rate=0.5))
    with pytest.raises(UserError, match=reason):
        config.replace(changes)


def test_an_average_is_allowed_where_weights_are_whole() -> None:
    for kind, stage in (("plain", 3), ("deepspeed", 2)):
        changes = {"engine.kind": kind, "engine.zero_stage": stage, "recipe.ema_decay": 0.9}
        assert TrainConfig(name="x").replace(changes).recipe == RecipeConfig(ema_decay=0.9)
