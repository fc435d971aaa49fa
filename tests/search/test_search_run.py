"""A search over three layouts of the tiny tower, killed in the middle; its parts without Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.util
from tiny import config_of

from img2prompt import cli, presets
from img2prompt.artifact import Artifact
from img2prompt.config.heads import HeadsConfig
from img2prompt.config.search import SearchConfig
from img2prompt.config.train import TrainConfig
from img2prompt.distributed.cluster import Resources
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.search import capacity, tuning
from img2prompt.search import run as search
from img2prompt.search.heads import best_heads
from img2prompt.search.results import BEST, TRIALS, summary
from img2prompt.search.space import Setting, trial_config
from img2prompt.train import heads
from img2prompt.train import job as train_job
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs
from img2prompt.train.preflight import worker_count
from img2prompt.workspace import Stage

EPOCHS, GRACE = 4, 1
FIRST, SECOND, THIRD = (f"lora0-nfz0.25-head{width}" for width in (1, 64, 2))
"""After an epoch the cosines are about 0.1, 0.5 and 0.1: one hidden unit or two say little."""
NO_INPUTS = TrainInputs(Artifact("nowhere", Stage.SHARDS, {}, {}, {}, {"train": 64, "val": 16}))

DRIVER = """
import sys
from pathlib import Path
from img2prompt.distributed import cluster
from img2prompt.artifact import Artifact
from img2prompt.config.search import SearchConfig
from img2prompt.search import run as search
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import Stage

if __name__ == "__main__":
    config, shards, out = sys.argv[1:]
    with cluster.connect():
        inputs = TrainInputs(Artifact.load(shards, Stage.SHARDS))
        search.run(SearchConfig.from_json(Path(config).read_text()), inputs, out)
"""


def real(test):
    """Mark a test that needs a real search."""
    return pytest.mark.ray(pytest.mark.slow(pytest.mark.timeout(1500)(test)))


def search_config(tower: str, **changes: Any) -> SearchConfig:
    """Return a search over three head widths, one trial at a time."""
    base = config_of(tower, optim__epochs=EPOCHS)
    fields = {
        "base": base,
        "probe": base.replace({"name": "probe", "plan": {}, "head.width": 1}),
        "lora_rates": (0.0,),
        "nfz_rates": (0.25,),
        "head_widths": (1, 64, 2),
        "trials": 3,
        "grace_epochs": GRACE,
        "reduction": 4,
        "concurrent": 1,
    }
    return SearchConfig(**fields | changes)


@pytest.mark.parametrize(("lora", "nfz"), [((0.0,), (0.0, 0.1)), ((0.75, 1.0), (0.5,))])
def test_a_space_without_a_learning_layout_is_refused(lora, nfz, tiny_tower, tmp_path) -> None:
    config = search_config(tiny_tower, lora_rates=lora, nfz_rates=nfz)
    with pytest.raises(UserError, match="leave no plan in which a layer learns"):
        search.run(config, NO_INPUTS, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def head_row(config: TrainConfig, best: float | None) -> dict[str, Any]:
    end = "finished" if best else "failed"
    return {"name": config.name, "width": config.head.width, "end": end, "best": best}


def test_trials_start_from_the_best_head_of_their_width(monkeypatch, tmp_path: Path) -> None:
    """The second head of width 64 is the best, the third of width 2; width 1 is not used."""
    grids = []

    def learn(grid: HeadsConfig, inputs: Any, out: str) -> Artifact:
        draft = Draft.open(out, Stage.HEADS, grid, {})
        scores = {1: (0.1, 0.2, 0.3), 2: (0.3, 0.4, 0.5), 64: (0.6, 0.8, 0.7)}
        configs = {width: [h for h in grid.heads() if h.head.width == width] for width in scores}
        rows = [
            head_row(*pair)
            for width, cosines in scores.items()
            for pair in zip(configs[width], cosines, strict=True)
        ]
        rows = sorted(rows, key=lambda row: -row["best"])
        for head in grid.heads():
            if head.name in (configs[64][1].name, configs[2][2].name, configs[1][2].name):
                Draft.open(f"{out}/{head.name}", Stage.TRAIN, head, {}).publish()
        draft.write_bytes(heads.TABLE, json.dumps([*rows, head_row(grid.base, None)]).encode())
        grids.append((grid, out))
        return draft.publish()

    monkeypatch.setattr(heads, "run", learn)
    settings = {"head_dropouts": (0.3,), "head_lrs": (1e-3, 2e-3, 3e-3), "heads": 2}
    config = search_config("demo", **settings).replace({"base.start_from": "probe"})
    starts = best_heads(config, (64, 2, 1, 64), NO_INPUTS, str(tmp_path))
    ((grid, out),) = grids
    assert out == f"{tmp_path}/runs/search-heads"
    assert (grid.base, grid.widths) == (config.probe, (1, 2, 64))
    assert [(width, start.config.optim.head_lr) for width, start in starts.items()] == [
        (64, 2e-3),
        (2, 3e-3),
    ]
    for width, start in starts.items():
        trial = trial_config(config, Setting(0.0, 0.25, width), head=start.config)
        assert (trial.head.width, trial.head.dropout) == (width, 0.3)
        assert trial.optim.head_lr == config.base.optim.head_lr
        loaded = Artifact.load(f"{tmp_path}/runs/{trial.start_from}", Stage.TRAIN)
        assert loaded == start.run
        assert loaded.config["optim"]["head_lr"] == start.config.optim.head_lr
        own = Setting(0.0, 0.25, width, (("head.dropout", 0.1),))
        axis = config.replace({"axes": {"head.dropout": "0.1"}})
        assert trial_config(axis, own, head=start.config).head.dropout == 0.1


def test_without_start_from_no_heads_are_trained(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(heads, "run", lambda *_: pytest.fail("heads were trained"))
    assert best_heads(search_config("demo"), (1, 2), NO_INPUTS, str(tmp_path)) == {}


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "concurrent", "trials_at_once"),
    [
        (4, 0, 1, 0, 2),
        (4, 0, 2, 0, 1),
        (4, 0, 3, 0, 1),
        (8, 0, 1, 0, 4),
        (8, 0, 3, 0, 2),
        (2, 0, 1, 0, 1),
        (4, 0, 0, 0, 1),  # two CPU workers
        (4, 0, 1, 1, 1),
        (4, 0, 1, 9, 2),
        (16, 8, 2, 0, 4),
        (16, 8, 3, 0, 2),
        (16, 8, 0, 0, 1),  # a worker for each GPU
        (16, 8, 2, 3, 3),
        (16, 8, 2, 9, 4),
    ],
)
def test_trials_at_once_all_fit(
    monkeypatch, cpus, gpus, workers, concurrent, trials_at_once
) -> None:
    monkeypatch.setattr("img2prompt.distributed.cluster.resources", lambda: Resources(cpus, gpus))
    config = search_config("demo", concurrent=concurrent).replace(
        {"base.engine.kind": "deepspeed", "base.engine.workers": workers}
    )
    capacity.require_room(config)
    assert capacity.concurrent_trials(config) == trials_at_once
    each = worker_count(config.base)
    if gpus:
        assert trials_at_once * each <= gpus
    else:  # at worst every driver lies on another node, and none of those has a whole CPU left
        assert trials_at_once * each <= cpus - trials_at_once


@pytest.mark.parametrize(
    ("resources", "workers", "message"),
    [
        (Resources(2, 0), 2, "needs 3 CPUs, the cluster has 2 at most"),
        (Resources(1, 0), 1, "needs 2 CPUs, the cluster has 1 at most"),
        (Resources(16, 2), 4, "needs 4 GPUs, the cluster has 2 at most"),
    ],
)
def test_a_cluster_too_small_for_one_trial_is_refused(
    monkeypatch, resources: Resources, workers: int, message: str, tiny_tower: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("img2prompt.distributed.cluster.resources", lambda: resources)
    config = search_config(tiny_tower).replace(
        {"base.engine.kind": "deepspeed", "base.engine.workers": workers}
    )
    with pytest.raises(UserError, match=message):
        search.run(config, NO_INPUTS, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Killed:
    """A search whose driver was killed when its second trial had an epoch or more."""

    config: SearchConfig
    shards: Artifact
    out: Path
    first_done: float
    """When the first trial's manifest was last written."""
    epochs: list[dict[str, Any]]
    """Epochs that the second trial had finished."""

    def trial(self, name: str) -> Path:
        return self.out / "search" / "trials" / name


def wait_for(what: str, happened, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def groups_left() -> list[str]:
    """Placement groups that hold resources or wait for them."""
    import ray.util

    groups = ray.util.placement_group_table().values()
    return [group["name"] or group["state"] for group in groups if group["state"] != "REMOVED"]


@pytest.fixture(scope="module")
def killed(cluster, prepared, tiny_tower: str, tmp_path_factory) -> Killed:
    out = tmp_path_factory.mktemp("search")
    config, shards = search_config(tiny_tower), prepared.shards
    (out / "config.json").write_text(config.to_json())
    (out / "driver.py").write_text(DRIVER)
    command = [sys.executable, out / "driver.py", out / "config.json", shards.uri, out]
    second = out / "search" / "trials" / SECOND
    with open(out / "log", "wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def second_has_an_epoch() -> bool:
        assert driver.poll() is None, (out / "log").read_text()
        return len(train_job.checkpoints(str(second)).history()) > 0

    try:
        wait_for("an epoch of the second trial", second_has_an_epoch)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_for("the killed search's workers leave", lambda: not groups_left())
    first = out / "search" / "trials" / FIRST / "manifest.json"
    epochs = train_job.checkpoints(str(second)).history()
    return Killed(config, shards, out, first.stat().st_mtime, epochs)


@pytest.fixture(scope="module")
def searched(killed: Killed) -> Artifact:
    """The killed search, run again in this process, with paths relative to this folder."""
    inputs = TrainInputs(Artifact.load(os.path.relpath(killed.shards.uri), Stage.SHARDS))
    return search.run(killed.config, inputs, os.path.relpath(killed.out))


def rows_of(result: Artifact) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(Path(result.path(TRIALS)).read_text())}


def write_other_run(folder: Path) -> None:
    """Write the unfinished folder of another run."""
    draft = Draft.open(str(folder), Stage.TRAIN, config_of("elsewhere"), {})
    draft.write_bytes("model.safetensors", b"half of a run")


def test_when_every_trial_fails_the_reasons_are_reported(
    monkeypatch, tiny_tower, tmp_path: Path
) -> None:
    reasons = {FIRST: "OSError: disk full", SECOND: "UserError: the loss is nan", THIRD: "-"}
    monkeypatch.setattr(tuning, "run", lambda *_, **__: reasons)
    monkeypatch.setattr("img2prompt.distributed.cluster.resources", lambda: Resources(4, 0))
    with pytest.raises(UserError) as caught:
        search.run(search_config(tiny_tower), NO_INPUTS, str(tmp_path))
    message = str(caught.value)
    assert [n for n in reasons if f"{n}: {reasons[n]}" not in message] == [], message
    assert not (tmp_path / "search" / BEST).exists()


@real
def test_a_killed_search_resumes_its_trials(killed: Killed, searched: Artifact) -> None:
    rows = rows_of(searched)
    assert set(rows) == {FIRST, SECOND, THIRD}
    assert (killed.trial(FIRST) / "manifest.json").stat().st_mtime == killed.first_done
    assert killed.epochs
    epochs = rows[SECOND]["epochs"]
    assert epochs[: len(killed.epochs)] == killed.epochs, "speeds too: they were not trained again"
    assert [row["epoch"] for row in epochs] == list(range(1, EPOCHS + 1))
    for name in (FIRST, SECOND):
        assert rows[name]["end"] == "finished"
        assert rows[name]["epochs"] == json.loads((killed.trial(name) / "history.json").read_text())


@real
def test_the_weakest_trial_is_stopped_early(searched: Artifact) -> None:
    rows = rows_of(searched)
    assert rows[THIRD]["end"] == "stopped"
    scores = {name: row["epochs"][GRACE - 1]["val_cosine"] for name, row in rows.items()}
    assert len(rows[THIRD]["epochs"]) == GRACE
    assert scores[THIRD] < np.percentile([scores[FIRST], scores[SECOND]], 75)
    assert scores[FIRST] < scores[SECOND], "else the second would have been stopped"


@real
def test_a_row_contains_the_cost_of_its_trial(killed: Killed, searched: Artifact) -> None:
    batch = killed.config.base.optim.batch_size
    a_pass = killed.shards.counts["train"] // batch * batch
    for row in rows_of(searched).values():
        assert set(row["setting"]) == {"lora_rate", "nfz_rate", "head_width"}
        assert row["seed"] == killed.config.base.seed
        assert row["plan"] == {"frozen": [0, 1, 2], "lora": [], "trained": [3]}
        width = row["setting"]["head_width"]
        layer = 4 * 32 * 32 + 2 * 32 * 64 + 64 + 9 * 32
        head = 32 * width + width * 384 + 384 + 2 * width
        assert row["learned"] == layer + head + 2 * 32  # the last LayerNorm learns too
        assert row["flop"] > 6 * row["learned"]
        assert row["memory"] > 16 * row["learned"]
        assert row["rows"] == len(row["epochs"]) * a_pass
        trained = sum(a_pass / epoch["rows_per_second"] for epoch in row["epochs"])
        assert row["seconds"] > 0.9 * trained


@real
def test_a_stopped_trial_leaves_no_placement_group_and_no_checkpoint(
    killed: Killed, searched: Artifact
) -> None:
    assert groups_left() == [], "the search has waited for that"
    for name in (FIRST, SECOND, THIRD):
        assert not (killed.trial(name) / "ray").exists()
    assert json.loads((killed.trial(THIRD) / "stopped.json").read_text())["reason"] == (
        "ASHA: not among the best 1/4 after epoch 1"
    )


@pytest.mark.ray
def test_placement_groups_that_stopped_trials_leave_are_removed(
    cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = tuning._placement_groups()
    group = ray.util.placement_group([{"CPU": 1}])
    ray.get(group.ready())
    assert tuning._placement_groups() - before == {group.id.hex()}
    monkeypatch.setattr(tuning, "RELEASE_S", 0.5)
    tuning._wait_for_release(before)
    assert tuning._placement_groups() == before
    assert f"still holds {group.id.hex()}" in caplog.text


@real
def test_tensorboard_has_the_settings_of_all_trials(killed: Killed, searched: Artifact) -> None:
    for name, row in rows_of(searched).items():
        files = sorted((killed.out / "search" / "tune" / name).glob("events.out.tfevents.*"))
        written = b"".join(path.read_bytes() for path in files)
        for part in (b"_hparams_/session_start_info", *map(str.encode, row["setting"])):
            assert part in written, (name, part)


@real
def test_the_best_config_is_that_of_the_best_trial(killed: Killed, searched: Artifact) -> None:
    rows = json.loads(Path(searched.path(TRIALS)).read_text())
    assert rows[0]["name"] == SECOND == searched.counts["best"]
    highest = [max(epoch["val_cosine"] for epoch in row["epochs"]) for row in rows]
    assert [row["best"] for row in rows] == highest == sorted(highest, reverse=True)
    best = TrainConfig.from_json(Path(searched.path(BEST)).read_text())
    assert best == trial_config(killed.config, Setting.from_dict(rows[0]["setting"])).replace(
        {"name": "best"}
    )
    arguments = ["--config", searched.path(BEST), "--out", str(killed.out)]
    assert cli.parse("", presets.TRAIN, arguments=arguments).config == best
    inputs, folder = TrainInputs(killed.shards), str(killed.out / "runs" / "best")
    train.advance(best, inputs, folder, 2)
    assert [row["epoch"] for row in train_job.checkpoints(folder).history()] == [1, 2]
    run = train.run(best, inputs, folder)
    assert run.counts["val_cosine"] == pytest.approx(rows[0]["best"], abs=1e-3)
    table = summary(searched)
    assert table[0] == [SECOND, rows[0]["best"], EPOCHS, "finished"]


@real
def test_a_finished_search_is_not_run_again(monkeypatch, killed: Killed, searched) -> None:
    monkeypatch.setattr(tuning, "run", lambda *_, **__: pytest.fail("a trial was run"))
    inputs = TrainInputs(killed.shards)
    again = search.run(killed.config, inputs, str(killed.out))
    assert again.fingerprint == searched.fingerprint
    other = killed.config.replace({"trials": 2, "base.optim.lr": 0.5})
    with pytest.raises(UserError) as caught:
        search.run(other, inputs, str(killed.out))
    assert "config.trials: saved 3, requested 2" in str(caught.value)
    assert "config.base.optim.lr: saved 0.002, requested 0.5" in str(caught.value)


@real
def test_a_trial_that_fails_is_named_with_its_reason(killed: Killed, searched, tmp_path) -> None:
    config = killed.config.replace({"head_widths": [1, 2]})
    folder = tmp_path / "search" / "trials"
    shutil.copytree(killed.trial(FIRST), folder / FIRST)
    write_other_run(folder / THIRD)
    result = search.run(config, TrainInputs(killed.shards), str(tmp_path))
    rows = rows_of(result)
    assert rows[FIRST]["end"] == "finished"
    assert rows[THIRD]["end"] == "failed"
    assert rows[THIRD]["best"] is None
    assert rows[THIRD]["reason"].startswith(f"UserError: {folder / THIRD} holds another run.")
    assert "tower.weights: saved 'elsewhere'" in rows[THIRD]["reason"]
    assert result.counts["best"] == FIRST
    assert result.counts["failed"] == 1
    assert "holds another run" in str(summary(result)[1])
