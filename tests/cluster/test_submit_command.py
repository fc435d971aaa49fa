"""The command of `cluster/submit.py`, without a cluster."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "submit.py"


@pytest.fixture(scope="module")
def submit() -> Any:
    spec = importlib.util.spec_from_file_location("submit", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def option(command: list[str], name: str) -> Any:
    return json.loads(command[command.index(name) + 1])


def test_options_after_the_job_go_to_the_job(submit) -> None:
    command = submit.command(["train", "lora-demo", "--out", "s3://b/run", "--optim.lr", "1e-4"])
    job = command[command.index("--") + 1 :]
    assert job == [
        "python",
        "jobs/train.py",
        "lora-demo",
        "--out",
        "s3://b/run",
        "--optim.lr",
        "1e-4",
    ]


def test_a_stopped_job_has_time_to_save(submit) -> None:
    runtime = option(submit.command(["demo"]), "--runtime-env-json")
    assert int(runtime["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def test_the_image_needs_no_upload_and_has_driver_machines(submit) -> None:
    command = submit.command(["--image", "--id", "mine", "demo", "--out", "/shared/x"])
    assert "--working-dir" not in command
    assert option(command, "--entrypoint-resources") == {"driver": 1}
    assert command[command.index("--submission-id") + 1] == "mine"
    assert "/app/jobs/demo.py" in command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["prepair"], "invalid choice: 'prepair'"), (["demo"], "RAY_API_SERVER_ADDRESS is not set")],
)
def test_mistakes_are_named_before_anything_is_sent(arguments, message) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_API_SERVER_ADDRESS"}
    run = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert message in run.stderr
