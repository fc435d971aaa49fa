import dataclasses
import json
from pathlib import Path

import pytest

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import PrepareConfig
from img2prompt.data.shards import SPLITS
from img2prompt.errors import UserError
from img2prompt.prepare import run as prepare
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.storage import join

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def out(prepared: PreparedData) -> Path:
    return Path(prepared.index.uri).parent


@pytest.fixture(scope="module")
def config(out: Path) -> PrepareConfig:
    return PrepareConfig.from_json((out / "prepare.json").read_text())


def folders(prepared: PreparedData) -> dict[str, Artifact]:
    return {field.name: getattr(prepared, field.name) for field in dataclasses.fields(prepared)}


def test_each_stage_reads_the_one_before(prepared: PreparedData) -> None:
    made = folders(prepared)
    assert made["clean"].inputs == {"index": made["index"].fingerprint}
    assert made["targets"].inputs == {"clean": made["clean"].fingerprint}
    assert made["groups"].inputs == {"targets": made["targets"].fingerprint}
    assert made["shards"].inputs == {
        name: made[name].fingerprint for name in ("index", "clean", "targets", "groups")
    }


def test_each_stage_saves_its_config(prepared: PreparedData, config: PrepareConfig) -> None:
    assert (config.name, config.shard.size) == ("tiny", 32)
    assert prepared.index.config == json.loads(json.dumps({"sources": config.to_dict()["sources"]}))
    assert prepared.clean.config == json.loads(config.clean.to_json())
    assert prepared.targets.config == {"encoder": ""}
    assert prepared.groups.config == config.group.to_dict()
    assert prepared.shards.config == config.shard.to_dict()


def test_a_finished_data_set_can_be_loaded(prepared: PreparedData, out: Path) -> None:
    assert PreparedData.load(str(out)) == prepared
    with pytest.raises(UserError, match="holds no finished index"):
        PreparedData.load(join(str(out), "elsewhere"))


def test_a_second_run_finds_everything_finished(
    prepared: PreparedData, config: PrepareConfig, out: Path
) -> None:
    def times() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in out.rglob("*.*") if p.parent != out}

    before = times()
    assert prepare.run(config, str(out)) == prepared
    assert times() == before
    assert len(before) > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"clean.min_words": 2},
            r"clean holds another run.*\n.*config\.min_words: saved 1, requested 2",
        ),
        ({"group.seed": 1}, r"groups holds another run.*\n.*config\.seed: saved 0, requested 1"),
        (
            {"shard.encoding": "jpeg"},
            r"shards holds another run.*\n.*saved 'png', requested 'jpeg'",
        ),
    ],
)
def test_a_changed_config_is_refused_by_its_stage(
    prepared: PreparedData, config: PrepareConfig, out: Path, change: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare.run(config.replace(change), str(out))
    assert PrepareConfig.from_json((out / "prepare.json").read_text()) == config


def test_the_summary_adds_up(prepared: PreparedData) -> None:
    rows = {str(what): (count, remark) for what, count, remark in prepare.summary(prepared)}
    assert rows["pictures listed"] == (500, "none rejected")
    assert rows["distinct prompts"][0] == 250
    splits = [rows[name][0] for name in ("train pictures", "validation pictures", "test pictures")]
    assert splits == [prepared.shards.read_tables(f"{split}/").num_rows for split in SPLITS]
    kept = rows["prompts kept"][0]
    assert isinstance(kept, int)
    assert sum(map(int, splits)) == 2 * kept
    assert f"{250 - kept} near duplicates" in str(rows["prompts kept"][1])
    assert "largest cosine to a training prompt 0." in str(rows["test pictures"][1])
