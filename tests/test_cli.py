import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from img2prompt import cli, presets
from img2prompt.cli import Options
from img2prompt.config.prepare import PrepareConfig
from img2prompt.config.train import TrainConfig
from img2prompt.errors import UserError

REPO = Path(__file__).parents[1]


def train(*arguments: str) -> Options[TrainConfig]:
    return cli.parse("Train.", presets.TRAIN, arguments=list(arguments))


def prepare(*arguments: str) -> Options[PrepareConfig]:
    return cli.parse("Prepare.", presets.PREPARE, default="demo", arguments=list(arguments))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the error message, in one line, of an exit with status 2."""
    with pytest.raises(SystemExit) as caught:
        train(*arguments)
    assert caught.value.code == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("name", presets.TRAIN)
def test_a_preset_alone_is_itself(name: str) -> None:
    assert train(name) == Options(
        config=presets.TRAIN[name](), out=str(Path("out/demo").absolute())
    )


def test_dotted_options_change_a_preset() -> None:
    found = train(
        "lora-demo",
        *("--out", "s3://bucket/run"),
        *("--optim.lr", "3e-5"),
        *("--plan.lora-rate", "0.2"),
        *("--head.width", "64"),
        *("--engine.zero-stage", "2"),
        *("--tower.weights", "somewhere/else"),
        "--plan.embeddings",
    )
    assert found.out == "s3://bucket/run"
    assert found.config == presets.lora_demo().replace(
        {
            "optim.lr": 3e-5,
            "plan.lora_rate": 0.2,
            "head.width": 64,
            "engine.zero_stage": 2,
            "tower.weights": "somewhere/else",
            "plan.embeddings": True,
        }
    )


def test_every_setting_of_a_preset_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train("lora-demo", "--help")
    assert not caught.value.code
    told = capsys.readouterr().out
    config = presets.lora_demo().to_dict()
    for part, fields in config.items():
        for field in fields if isinstance(fields, dict) else [""]:
            option = f"--{part}.{field}".rstrip(".").replace("_", "-")
            assert option in told
    assert "Peak learning rate of the head" in " ".join(told.replace("│", " ").split())


def test_options_reach_into_sources() -> None:
    found = prepare("--sources.0.prompts", "40", "--sources.0.world", "tower")
    expected = presets.demo_data().sources[0].replace({"prompts": 40, "world": "tower"})
    assert found.config.sources == (expected,)
    csv = prepare("pictures", "--sources.0.path", "here.csv", "--shard.size", "224")
    assert csv.config == presets.pictures_data().replace(
        {"sources": [{**presets.pictures_data().sources[0].to_dict(), "path": "here.csv"}]}
        | {"shard.size": 224}
    )


def test_the_default_preset_needs_no_name() -> None:
    assert prepare().config == presets.demo_data()
    assert prepare("--group.seed", "3").config == presets.demo_data().replace({"group.seed": 3})
    assert prepare("demo", "--group.seed", "3") == prepare("--group.seed", "3")
    only = cli.parse("One.", {"only": presets.lora_demo}, arguments=["--optim.epochs", "2"])
    assert only.config == presets.lora_demo().replace({"optim.epochs": 2})


def test_a_saved_config_takes_the_place_of_a_preset(tmp_path: Path) -> None:
    kept = presets.lora_l14_336().replace({"seed": 7, "optim.warmup": 0.3})
    path = tmp_path / "config.json"
    path.write_text(kept.to_json())
    assert train("--config", str(path)).config == kept
    assert train("--config", f"file://{path}").config == kept
    found = train("--out", "x", "--config", str(path), "--optim.epochs", "9")
    assert found == Options(config=kept.replace({"optim.epochs": 9}), out=str(Path("x").absolute()))


def test_a_training_job_may_resume_anyway() -> None:
    def job(*arguments: str) -> cli.TrainOptions[TrainConfig]:
        return cli.parse("Train.", presets.TRAIN, arguments=list(arguments), kind=cli.TrainOptions)

    assert not job("lora-demo").resume_anyway
    found = job("lora-demo", "--resume-anyway", "--optim.lr", "1e-3")
    assert found.resume_anyway
    assert found.config == presets.lora_demo().replace({"optim.lr": 1e-3})


def test_a_submitted_job_refuses_a_relative_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match="'out/x', relative to a copy of your folder"):
        train("lora-demo", "--out", "out/x")
    assert train("lora-demo", "--out", "/shared/x").out == "/shared/x"
    assert train("lora-demo", "--out", "s3://bucket/x").out == "s3://bucket/x"


def test_a_saved_config_is_checked(tmp_path: Path) -> None:
    tree: dict[str, Any] = presets.lora_demo().to_dict()
    tree["optim"]["speed"] = 1
    (tmp_path / "unknown.json").write_text(json.dumps(tree))
    with pytest.raises(
        UserError, match=r"unknown\.json is not a valid TrainConfig:\n  optim\.speed"
    ):
        train("--config", str(tmp_path / "unknown.json"))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    for name in ("bytes.json", "absent.json", "."):
        with pytest.raises(UserError, match=r"--config .* cannot be read"):
            train("--config", str(tmp_path / name))
    with pytest.raises(UserError, match="--config needs the path"):
        train("--config")


def test_the_error_for_an_unknown_or_missing_preset_lists_the_presets() -> None:
    for arguments, wrong in [(["probe"], "'probe' is no preset"), ([], "no preset is named")]:
        with pytest.raises(UserError, match=wrong) as caught:
            train(*arguments)
        assert all(f"\n  {name}" in str(caught.value) for name in presets.TRAIN)


def test_bad_options_exit_with_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "--optim.speed" in refused(capsys, "lora-demo", "--optim.speed", "3")
    assert "'fast'" in refused(capsys, "lora-demo", "--optim.lr", "fast")
    told = refused(capsys, "lora-demo", "--engine.kind", "turbo")
    assert "'turbo'" in told
    assert "('plain', 'deepspeed')" in told
    told = refused(capsys, "lora-demo", "--optim.lr", "-1")
    assert "optim.lr is -1.0; allowed: above 0" in told
    assert "--optim.lr" in refused(capsys, "lora-demo", "--optim.lr")


def test_help_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train("--help")
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith("Train.\n")
    for name, make in presets.TRAIN.items():
        assert f"  {name}: {(make.__doc__ or '').splitlines()[0]}" in told


def test_main_prints_user_errors_and_raises_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong() -> None:
        raise UserError("file [red].csv, row 3: [/bold] is 'x'; allowed: [0, 1)")

    def broken() -> None:
        raise KeyError("ours")

    with pytest.raises(SystemExit) as caught:
        cli.main(wrong)
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.err == "error: file [red].csv, row 3: [/bold] is 'x'; allowed: [0, 1)\n"
    assert not told.out
    with pytest.raises(KeyError, match="ours"):
        cli.main(broken)


def test_a_table_prints_brackets_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    cli.show("title [x]", ["", "count"], [["[bold]a[/]", 12345], ["b", 0.123456], ["c", "[1]"]])
    told = capsys.readouterr().out
    for part in ("title [x]", "[bold]a[/]", "12,345", "0.1235", "[1]"):
        assert part in told


def test_the_next_job_is_printed_as_a_shell_command(capsys: pytest.CaptureFixture[str]) -> None:
    cli.show_next("its scores", "/data/my runs", "evaluate", "--runs", "a;b")
    expected = "next, its scores: python jobs/evaluate.py --runs 'a;b' --out '/data/my runs'\n"
    assert capsys.readouterr().out == expected


def run_job(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "jobs/train.py", *arguments]
    return subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.ray
def test_a_job_reports_missing_input_without_a_traceback(cluster, tmp_path: Path) -> None:
    done = run_job("lora-demo", "--out", str(tmp_path))
    assert done.returncode == 2
    assert f"error: {tmp_path}/shards holds no finished shards: run the job" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_job_without_a_preset_starts_nothing() -> None:
    done = run_job("--optim.lr", "1e-4")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no preset is named")
    assert "Traceback" not in done.stderr + done.stdout
