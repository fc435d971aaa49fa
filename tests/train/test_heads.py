"""The heads stage: compared with training alone, restarted, and with failing heads."""

import json
from pathlib import Path

import pytest
from tiny import assert_close, config_of, model_of

from img2prompt.artifact import Artifact
from img2prompt.config.heads import HeadsConfig
from img2prompt.config.train import PlanConfig, TrainConfig
from img2prompt.errors import UserError
from img2prompt.model.prompt_model import load_head, load_prompt_model, read_learned_state
from img2prompt.storage import exists, join, read_bytes
from img2prompt.train import heads
from img2prompt.train import heads_together as heads_worker
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs, TrainJob
from img2prompt.workspace import Stage

pytestmark = pytest.mark.ray

EPOCHS, GOOD, HUGE = 3, 5e-3, 3e37
LINEAR, WIDE = f"width0-dropout0.3-lr{GOOD:g}", f"width12-dropout0.3-lr{GOOD:g}"


def grid(tower: str, **changes) -> HeadsConfig:
    """A linear and a wide head, each with a good rate and with one that diverges."""
    base = config_of(tower, PlanConfig(), optim__epochs=EPOCHS)
    fields = {"widths": (0, 12), "dropouts": (0.3,), "lrs": (HUGE, GOOD), "keep": 3}
    return HeadsConfig(base=base, **fields | changes)


@pytest.fixture(scope="module")
def inputs(prepared, embedded: Artifact) -> TrainInputs:
    return TrainInputs(prepared.shards, embedded)


@pytest.fixture(scope="module")
def made(
    inputs: TrainInputs, tiny_tower: str, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    out = tmp_path_factory.mktemp("out") / "heads"
    return heads.run(grid(tiny_tower), inputs, f"file://{out}")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train heads in this process instead of a Ray task."""

    def train_here(configs, inputs, out, tower) -> list[heads_worker.HeadOutcome]:
        jobs = [TrainJob(config, inputs, join(out, config.name)) for config in configs]
        return heads_worker.train_heads(jobs, tower.width)

    monkeypatch.setattr(heads, "_train", train_here)


def test_the_table_lists_every_head_best_first(made: Artifact, embedded: Artifact) -> None:
    rows = heads.table(made.uri)
    assert {row["name"] for row in rows[:2]} == {LINEAR, WIDE}
    assert rows[0]["best"] >= rows[1]["best"] > 0
    assert [row["end"] for row in rows] == ["finished", "finished", "failed", "failed"]
    learned = {LINEAR: 32 * 384 + 384, WIDE: 32 * 12 + 2 * 12 + 12 * 384 + 384}
    for row in rows[:2]:
        assert row["name"] == f"width{row['width']}-dropout{row['dropout']}-lr{row['head_lr']:g}"
        assert (row["seed"], row["reason"]) == (0, "")
        scores = [epoch["val_cosine"] for epoch in row["epochs"]]
        assert len(scores) == EPOCHS
        assert row["best"] == max(scores) == scores[row["best_epoch"] - 1]
        assert row["learned"] == learned[row["name"]]
        assert row["seconds"] > 0
    for row in rows[2:]:
        assert row["head_lr"] == HUGE
        assert row["reason"]
    counts = {"heads": 4, "failed": 2, "best": rows[0]["name"], "val_cosine": rows[0]["best"]}
    assert made.counts == counts
    assert not exists(made.path(rows[2]["name"]))


@pytest.mark.slow
def test_a_kept_head_is_the_run_that_training_alone_makes(
    made: Artifact, inputs: TrainInputs, tiny_tower: str, tmp_path: Path
) -> None:
    config = next(head for head in grid(tiny_tower).heads() if head.name == WIDE)
    kept = Artifact.load(made.path(WIDE), Stage.TRAIN)
    alone = train.run(config, inputs, str(tmp_path / WIDE))
    assert_close(read_learned_state(kept), read_learned_state(alone), atol=1e-5)
    assert kept.config == alone.config
    assert kept.inputs == alone.inputs
    assert kept.names() == alone.names()
    assert kept.counts["best_epoch"] == alone.counts["best_epoch"]
    ours, theirs = (json.loads(read_bytes(run.path(train.HISTORY))) for run in (kept, alone))
    for row, expected in zip(ours, theirs, strict=True):
        for key in ("epoch", "train_loss", "val_cosine"):
            assert row[key] == pytest.approx(expected[key], abs=1e-5)


def test_a_kept_head_starts_a_fine_tune_and_predicts(
    made: Artifact, inputs: TrainInputs, tiny_tower: str
) -> None:
    for name in (LINEAR, WIDE):
        kept = Artifact.load(made.path(name), Stage.TRAIN)
        config = TrainConfig.from_json(json.dumps(kept.config))
        assert train.run(config, inputs, kept.uri).fingerprint == kept.fingerprint, "it is done"
        tuned = config_of(tiny_tower, width=config.head.width)  # without dropout
        model = model_of(tuned)
        load_head(model, kept)
        state = read_learned_state(kept)
        assert_close({f"head.{n}": t for n, t in model.head.state_dict().items()}, state, atol=0)
        assert_close(
            {f"head.{n}": t for n, t in load_prompt_model(kept).head.state_dict().items()},
            state,
            atol=0,
        )
        assert not exists(join(kept.uri, "ray"))


def test_finished_heads_are_not_trained_again(made: Artifact, inputs, tiny_tower, monkeypatch):
    monkeypatch.setattr(heads, "_train", lambda *_: pytest.fail("heads were trained"))
    assert heads.run(grid(tiny_tower), inputs, made.uri) == made
    with pytest.raises(UserError, match=r"config\.keep: saved 3, requested 1"):
        heads.run(grid(tiny_tower, keep=1), inputs, made.uri)


def test_a_run_killed_while_it_publishes_resumes(
    made: Artifact, inputs: TrainInputs, tiny_tower: str, tmp_path: Path, monkeypatch, in_process
) -> None:
    config, out = grid(tiny_tower, lrs=(GOOD,), keep=2), str(tmp_path / "heads")
    publish, published = train.publish, []

    def killed(draft, *rest) -> Artifact:
        if published:
            raise KeyboardInterrupt
        published.append(draft.uri)
        return publish(draft, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            heads.run(config, inputs, out)
    monkeypatch.setattr(heads, "_train", lambda *_: pytest.fail("heads were trained again"))
    done = heads.run(config, inputs, out)
    for name in (LINEAR, WIDE):
        kept = read_learned_state(Artifact.load(done.path(name), Stage.TRAIN))
        expected = read_learned_state(Artifact.load(made.path(name), Stage.TRAIN))
        assert_close(kept, expected, atol=1e-5)


def test_when_all_heads_fail_the_reasons_are_reported(
    inputs: TrainInputs, tiny_tower: str, tmp_path: Path, in_process
) -> None:
    config = grid(tiny_tower, lrs=(HUGE,))
    with pytest.raises(UserError, match=r"every head failed; try lower") as caught:
        heads.run(config, inputs, str(tmp_path))
    for head in config.heads():
        assert f"{head.name}: " in str(caught.value)


def test_a_probe_without_features_is_refused(
    inputs: TrainInputs, tiny_tower: str, tmp_path
) -> None:
    with pytest.raises(UserError, match="run the features job first"):
        heads.run(grid(tiny_tower), TrainInputs(inputs.shards), str(tmp_path))
    assert list(tmp_path.iterdir()) == []
