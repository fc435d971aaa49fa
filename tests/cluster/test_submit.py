"""`ray job submit` to a cluster that requires a token."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from img2prompt.artifact import Artifact
from img2prompt.config.train import PlanConfig
from img2prompt.workspace import Stage

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def exports(start_nodes) -> Iterator[dict[str, str]]:
    with start_nodes("--nodes", "2", "--cpus", "2") as exported:
        yield exported


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    """Run `ray job submit`."""
    return subprocess.run(
        [Path(sys.executable).with_name("ray"), "job", "submit", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize(
    ("variables", "status"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, 401),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, 403),
    ],
)
def test_without_the_token_a_job_is_refused(exports, variables, status, outside) -> None:
    address = exports["RAY_API_SERVER_ADDRESS"]
    done = submit(outside | variables | {"RAY_API_SERVER_ADDRESS": address}, "--", "echo", "it ran")
    assert done.returncode != 0
    assert "AuthenticationError" in done.stdout
    assert "it ran" not in done.stdout
    token = variables.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{address}/api/jobs/", headers=headers))
    assert refused.value.code == status


def test_with_the_token_a_job_runs_this_package_on_a_worker(exports, outside) -> None:
    done = submit(
        outside | exports,
        *("--submission-id", "probe", "--working-dir", str(ROOT)),
        *("--runtime-env-json", '{"env_vars": {"HF_HUB_OFFLINE": "0"}}'),
        *("--", "python", "tests/cluster/probe_job.py"),
    )
    assert done.returncode == 0, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("PROBE ")]
    report = json.loads(line.removeprefix("PROBE "))
    assert report["plan"] == PlanConfig(lora_rate=0.5).fingerprint()
    assert report["cpus"] == 4
    assert report["offline"] == "0", "the submitter's variable is kept"
    assert report["node"] != report["head"], "the head has no CPUs"
    folder = Path(exports["RAY_AUTH_TOKEN_PATH"]).parent
    assert Path(report["package"]).is_relative_to(folder), "the uploaded package, not this checkout"


def test_a_job_runs_as_in_the_readme(exports, outside, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "cluster" / "submit.py",
            "prepare",
            "demo",
            "--sources.0.prompts",
            "60",
            "--out",
            str(out),
        ],
        env=outside | exports,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    shards = Artifact.load(str(out / "shards"), Stage.SHARDS)
    pictures = {split: shards.counts[split] for split in ("train", "val", "test")}
    assert all(pictures.values())
    rows = {split: shards.read_tables(f"{split}/", ["id"]).num_rows for split in pictures}
    assert rows == pictures
    assert sum(rows.values()) <= 120
    assert f"demo in {out}" in done.stdout
    for name, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert re.search(rf"│ {name} pictures +│ +{pictures[split]} │", done.stdout), done.stdout


def test_the_exit_code_of_a_submitted_job_is_that_of_the_job(exports, outside) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "cluster" / "submit.py", "prepare", "no-such-preset"],
        env=outside | exports,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2, done.stdout
    assert "no-such-preset" in done.stdout
