import ast
from pathlib import Path

import pytest

from img2prompt.config.base import Config
from img2prompt.config.prepare import ShardConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.workspace import (
    HeadsFolder,
    IndexFolder,
    RunFolder,
    SearchFolder,
    Stage,
    Workspace,
)

ROOT = Path(__file__).parents[1]
FOLDERS = ("index", "clean", "targets", "groups", "shards", "features", "runs", "samples", "tower")
RESULTS = ("evaluation", "predictions", "export", "search")


@pytest.mark.parametrize("out", ["/data/out", "s3://bucket/out"])
def test_folders_are_inside_out(out: str) -> None:
    workspace = Workspace(out)
    for name in FOLDERS:
        assert getattr(workspace, name) == f"{out}/{name}"
    files = (workspace.prepare_config, workspace.config, workspace.metrics)
    assert files == (f"{out}/prepare.json", f"{out}/config.json", f"{out}/metrics.json")
    assert workspace.run("lora") == f"{out}/runs/lora"
    assert workspace.run("search-heads/head0-lr0.005") == f"{out}/runs/search-heads/head0-lr0.005"
    for kind in RESULTS:
        assert getattr(workspace, kind)("my_run-2.b") == f"{out}/my_run-2.b"


def test_folders_inside_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder("s3://bucket/runs/lora")
    assert run.work == "s3://bucket/runs/lora/ray"
    assert run.checkpoints == f"{run.work}/checkpoints"
    assert run.stop_request == f"{run.work}/stop/asked"
    assert SearchFolder("/out/search").trial("lora0.3") == "/out/search/trials/lora0.3"
    assert HeadsFolder("/out/runs/heads").head("wide") == "/out/runs/heads/wide"
    assert IndexFolder("/out/index").portions == "/out/index/listed"
    monkeypatch.chdir(tmp_path)  # workers run in other folders
    assert RunFolder("runs/lora").work == f"{tmp_path}/runs/lora/ray"


BAD_NAMES = ["", ".", "..", ".hidden", "a\n", "/a", "a/", "a/..", "../a", "a//b", "a/.b"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", ["run", *RESULTS])
def test_a_name_that_could_leave_its_folder_is_refused(kind: str, name: str) -> None:
    with pytest.raises(UserError, match="allowed are printable names"):
        getattr(Workspace("/out"), kind)(name)


@pytest.mark.parametrize("name", ["lr=3e-4", "a+b", "my run", "ä", "a/b", "grid/head"])
@pytest.mark.parametrize("kind", ["run", *RESULTS])
def test_other_names_are_allowed(kind: str, name: str) -> None:
    assert getattr(Workspace("/out"), kind)(name).endswith(f"/{name}")


@pytest.mark.parametrize("name", ["mean", "neighbours"])
def test_a_run_may_not_have_the_name_of_a_built_in_predictor(name: str) -> None:
    with pytest.raises(UserError, match=f"run '{name}' has the name of a built-in predictor"):
        Workspace("/out").run(name)


@pytest.mark.parametrize("name", [*FOLDERS, "prepare.json", "metrics.json", "runs/x"])
def test_a_result_may_not_take_the_name_of_another_folder(name: str) -> None:
    for kind in RESULTS:
        with pytest.raises(UserError, match=f"result '{name}': allowed are names other than index"):
            getattr(Workspace("/out"), kind)(name)


def finish(uri: str, stage: str, config: Config) -> None:
    Draft.open(uri, stage, config, {}).publish(rows=1)


def test_open_returns_finished_artifacts_of_the_right_stage(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    stages = (Stage.INDEX, Stage.CLEAN, Stage.TARGETS, Stage.GROUPS, Stage.SHARDS, Stage.FEATURES)
    for stage in stages:
        with pytest.raises(UserError, match=f"{stage} holds no finished {stage}"):
            getattr(workspace, f"open_{stage}")()
        finish(getattr(workspace, stage), stage, ShardConfig())
        artifact = getattr(workspace, f"open_{stage}")()
        assert (artifact.uri, artifact.stage) == (f"{tmp_path}/{stage}", stage)


def test_open_refuses_another_stage_and_an_unfinished_run(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    finish(workspace.run("grid"), Stage.HEADS, ShardConfig())
    with pytest.raises(UserError, match="holds 'heads', not 'train'"):
        workspace.open_run("grid")
    Draft.open(workspace.run("lora"), Stage.TRAIN, ShardConfig(), {})
    with pytest.raises(UserError, match="was not finished"):
        workspace.open_run("lora")
    with pytest.raises(UserError, match=r"run '\.\.'"):
        workspace.open_run("..")


def joined_names(path: Path) -> list[str]:
    """Text constants that a file passes to `join(uri, ...)`."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    joins = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "join"]
    names = [argument for call in joins for argument in call.args[1:]]
    return [str(name.value) for name in names if isinstance(name, ast.Constant)]


def test_no_other_file_joins_a_folder_name_to_a_path() -> None:
    """Names of data files in a stage's own folder are constants of that stage."""
    files = sorted((*(ROOT / "img2prompt").rglob("*.py"), *(ROOT / "jobs").glob("*.py")))
    joins = {path.name: names for path in files if (names := joined_names(path))}
    known = {*FOLDERS, "ray", "checkpoints", "stop/asked", "trials", "listed", "prepare.json"}
    assert known <= set(joins.pop("workspace.py"))
    assert not {name for names in joins.values() for name in names} & known
