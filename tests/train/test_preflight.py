import json
import logging
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from img2prompt.artifact import CONFIG, Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.holder import this_process
from img2prompt.lease import KEEPER, LEASE
from img2prompt.storage import exists, join, read_bytes, write_bytes
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs, TrainJob, checkpoints
from img2prompt.train.preflight import FREE, adopt_config
from img2prompt.workspace import RunFolder, Stage

MADE_FROM = {"shards": "1"}


@pytest.fixture(params=["path", "file://"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    prefix = "file://" if request.param == "file://" else ""
    return f"{prefix}{tmp_path}/run"


def config(seed: int) -> TrainConfig:
    return TrainConfig(name="run", seed=seed)


def saved(seed: int) -> dict[str, Any]:
    """The config as it is read from a file, with lists for tuples."""
    return json.loads(config(seed).to_json())


def opened(out: str, seed: int, made_from: dict[str, str] = MADE_FROM) -> Draft:
    return Draft.open(out, Stage.TRAIN, config(seed), made_from, free=FREE)


def test_an_unfinished_run_resumes_with_another_config_and_keeps_both(
    out: str, caplog: pytest.LogCaptureFixture
) -> None:
    adopt_config(config(1), MADE_FROM, out)
    assert not exists(out)
    opened(out, 1).write_bytes("x", b"x")
    for seed in (1, 2, 3, 3):
        with caplog.at_level(logging.WARNING):
            adopt_config(config(seed), MADE_FROM, out)
        assert opened(out, seed).finished() is None
    assert [line.splitlines()[1:] for line in caplog.messages] == [
        ["  config.seed: saved 1, requested 2"],
        ["  config.seed: saved 2, requested 3"],
    ]
    with pytest.raises(UserError, match=r"config\.seed: saved 3, requested 1"):
        opened(out, 1)
    assert TrainConfig.from_json(read_bytes(join(out, "config.json")).decode()) == config(3)
    made = opened(out, 3).publish()
    assert made.config["seed"] == 3
    assert made.names() == ["changes/000.json", "changes/001.json", "x"]
    kept = [json.loads(read_bytes(made.path(name))) for name in made.names("changes/")]
    assert [change["config"] for change in kept] == [saved(1), saved(2)]
    assert kept[1]["differences"] == ["config.seed: saved 2, requested 3"]


def test_other_inputs_and_finished_runs_are_left_for_refusal(out: str) -> None:
    opened(out, 1).write_bytes("x", b"x")
    adopt_config(config(2), {"shards": "2"}, out)
    differences = r"config\.seed: saved 1, requested 2\n  inputs\.shards: saved '1', requested '2'"
    with pytest.raises(UserError, match=differences):
        opened(out, 2, {"shards": "2"})
    made = opened(out, 1).publish()
    adopt_config(config(2), MADE_FROM, out)
    with pytest.raises(UserError, match=r"config\.seed: saved 1, requested 2"):
        opened(out, 2)
    assert Artifact.load(out, Stage.TRAIN) == made


def test_a_run_that_another_job_has_taken_over_is_not_published(tmp_path: Path) -> None:
    """The other job may have deleted the checkpoints already."""
    own, uri = TrainConfig(name="probe"), str(tmp_path / "probe")
    draft = Draft.open(uri, Stage.TRAIN, own, {})
    lease = KEEPER.hold(uri)
    assert lease is not None
    write_bytes(lease.path, json.dumps({**asdict(this_process()), "token": "other"}).encode())
    lease.renew()
    with pytest.raises(UserError, match="has another writer"):
        train.publish(draft, own, checkpoints(uri), 1.0)
    KEEPER.end(uri)


def test_a_stop_signal_leaves_the_job_that_has_taken_over_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = str(tmp_path / "probe")
    lease = KEEPER.hold(uri)
    assert lease is not None

    def lose_lease_and_stop(*_: object) -> None:
        write_bytes(lease.path, json.dumps({**asdict(this_process()), "token": "other"}).encode())
        lease.renew()
        signal.raise_signal(signal.SIGTERM)

    shards = Artifact("shards", Stage.SHARDS, {}, {}, {}, {})
    monkeypatch.setattr(train, "train_worker", lose_lease_and_stop)
    train._fit(TrainJob(TrainConfig(name="probe"), TrainInputs(shards), uri), [], True)
    assert not exists(RunFolder(uri).stop_request)
    assert "SIGTERM: cannot save (UserError: " in capfd.readouterr().err
    KEEPER.end(uri)


def test_no_config_is_adopted_while_another_job_writes(tmp_path: Path) -> None:
    uri = str(tmp_path / "probe")
    Draft.open(uri, Stage.TRAIN, TrainConfig(name="probe"), {}, free=FREE).write_bytes("x", b"x")
    before = read_bytes(join(uri, CONFIG))
    other = {**asdict(this_process()), "token": "other"}
    write_bytes(join(uri, LEASE), json.dumps(other).encode())
    with pytest.raises(UserError, match="is being written by another job"):
        adopt_config(TrainConfig(name="probe").replace({"optim.epochs": 9}), {}, uri)
    assert read_bytes(join(uri, CONFIG)) == before
