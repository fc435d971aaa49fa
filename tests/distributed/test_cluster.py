"""Local clusters (their resources, the workers' environment, cleaning up) and clusters to join.

Each driver runs in a process of its own, since a process is in one cluster at a time.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from img2prompt.distributed.cluster import (
    Resources,
    _limit_ray_data,
    require,
    resources,
)
from img2prompt.distributed.local_cluster import _start
from img2prompt.errors import UserError
from img2prompt.lease import WORKER

ROOT = Path(__file__).parents[2]
STALE = "0" * 64

TWO_CLUSTERS = """
import dataclasses, json, logging, os
import ray
from img2prompt.distributed import cluster

@ray.remote
def look():
    import img2prompt
    logging.getLogger("img2prompt.probe").info("a line of ours")
    logging.getLogger("ray.probe").info("a line of Ray's")
    return {**os.environ, "package": img2prompt.__file__}

def visit(download):
    with cluster.connect(download=download) as there:
        with cluster.connect(cpus=7) as again:
            pass
        context = ray.get_runtime_context()
        return {
            "there": dataclasses.asdict(there),
            "again": dataclasses.asdict(again),
            "worker": ray.get(look.remote()),
            "driver": {**os.environ},
            "address": context.gcs_address,
            "folder": context.get_temp_dir(),
        }

before = {**os.environ}
seen = [visit(download) for download in (False, True)]
names = [name for name in {*before, *os.environ} if name.startswith("RAY_")]
changed = [name for name in names if before.get(name) != os.environ.get(name)]
left = [visit["folder"] for visit in seen if os.path.exists(visit["folder"])]
print("SEEN " + json.dumps([seen, changed, left]))
"""

JOIN_EACH = """
import os, sys
from img2prompt.distributed import cluster
from img2prompt.errors import UserError
for address in sys.argv[1:]:
    os.environ["RAY_ADDRESS"] = address
    try:
        with cluster.connect():
            print("joined")
    except UserError as error:
        print(" ".join(str(error).split()), "RAY_AUTH_MODE" in os.environ)
"""


def run_script(
    text: str, *arguments: str, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess:
    """Run Python code in an environment that names no cluster."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "IMG2PROMPT_"))}
    done = subprocess.run(
        [sys.executable, "-c", text, *arguments],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home in which an earlier Ray left its token."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text(STALE)
    return folder


@pytest.fixture(scope="module")
def printed(home) -> subprocess.CompletedProcess:
    """A driver that starts one cluster after another, run from the checkout."""
    return run_script(TWO_CLUSTERS, HOME=str(home), PYTHONPATH=".")


@pytest.fixture(scope="module")
def seen(printed) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    (line,) = [line for line in printed.stdout.splitlines() if line.startswith("SEEN ")]
    return json.loads(line.removeprefix("SEEN "))


@pytest.fixture(scope="module")
def visits(seen) -> list[dict[str, Any]]:
    return seen[0]


@pytest.mark.ray
def test_a_local_cluster_offers_four_cpus_or_all_cores(visits) -> None:
    assert visits[0]["there"]["cpus"] == max(4, len(os.sched_getaffinity(0)))


@pytest.mark.ray
def test_connecting_inside_a_connection_changes_nothing(visits) -> None:
    assert visits[0]["again"] == visits[0]["there"]


@pytest.mark.ray
def test_workers_have_the_package_of_the_driver(visits) -> None:
    assert visits[0]["worker"]["package"] == str(ROOT / "img2prompt" / "__init__.py")


@pytest.mark.ray
def test_workers_fetch_weights_only_with_download(visits) -> None:
    assert [visit["worker"]["HF_HUB_OFFLINE"] for visit in visits] == ["1", "0"]
    assert visits[0]["worker"]["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.ray
def test_workers_are_covered_by_the_leases_of_their_driver(visits) -> None:
    tokens = {visit["worker"][WORKER] for visit in visits}
    assert len(tokens) == 1
    assert len(tokens.pop()) == 32
    assert not any(WORKER in visit["driver"] for visit in visits)


@pytest.mark.ray
def test_driver_and_workers_have_the_address_of_their_cluster(visits) -> None:
    for visit in visits:
        assert visit["worker"]["RAY_ADDRESS"] == visit["driver"]["RAY_ADDRESS"] == visit["address"]


@pytest.mark.ray
def test_each_cluster_has_a_token_of_its_own_and_leaves_the_old_one_alone(visits, home) -> None:
    tokens = {visit["worker"]["RAY_AUTH_TOKEN"] for visit in visits}
    assert {visit["worker"]["RAY_AUTH_MODE"] for visit in visits} == {"token"}
    assert len(tokens | {STALE}) == 3
    assert (home / ".ray" / "auth_token").read_text() == STALE


@pytest.mark.ray
def test_nothing_is_left_behind(seen) -> None:
    _, changed_variables, folders = seen
    assert changed_variables == []
    assert folders == []


@pytest.mark.ray
def test_workers_log_our_lines_and_not_those_of_ray(printed) -> None:
    text = printed.stdout + printed.stderr
    assert "INFO img2prompt.probe: a line of ours" in text
    assert "a line of Ray's" not in text


@pytest.mark.ray
@pytest.mark.slow
def test_an_explicit_choice_of_authentication_is_kept(home) -> None:
    done = run_script(TWO_CLUSTERS, cwd=Path("/"), HOME=str(home), RAY_AUTH_MODE="disabled")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    (first, _), changed, _ = json.loads(line.removeprefix("SEEN "))
    assert first["worker"]["RAY_AUTH_MODE"] == "disabled"
    assert first["worker"]["package"] == str(ROOT / "img2prompt" / "__init__.py")
    assert changed == []


def test_an_address_without_a_cluster_is_an_error_at_once() -> None:
    addresses = ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "somewhere", "127.0.0.1:1"]
    lines = run_script(JOIN_EACH, *addresses).stdout.splitlines()
    assert len(lines) == 4
    for address, line in zip(addresses[:3], lines, strict=False):
        assert line.startswith(f"RAY_ADDRESS is {address!r}; allowed: HOST:PORT")
        assert line.endswith("False"), "the environment is as it was"
    assert lines[3].startswith("no cluster could be joined at RAY_ADDRESS=127.0.0.1:1")
    assert "connection refused. Unset RAY_ADDRESS" in lines[3]


def cluster_of(current: Mapping[str, float], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ray, "cluster_resources", lambda: dict(current))


def test_more_than_a_cluster_can_provide_is_refused(monkeypatch) -> None:
    cluster_of({"CPU": 4.0, "memory": 1e9}, monkeypatch)
    assert resources() == Resources(cpus=4, gpus=0)
    require(cpus=4)
    with pytest.raises(UserError, match="needs 5 CPUs, the cluster has 4 at most"):
        require(cpus=5)
    with pytest.raises(UserError, match=r"needs 1 GPUs, .* IMG2PROMPT_MAX_GPUS"):
        require(gpus=1)


def test_an_autoscaling_cluster_declares_its_largest_size(monkeypatch) -> None:
    cluster_of({"CPU": 4.0, "GPU": 1.0}, monkeypatch)
    monkeypatch.setenv("IMG2PROMPT_MAX_CPUS", "2")
    monkeypatch.setenv("IMG2PROMPT_MAX_GPUS", "8")
    assert resources() == Resources(cpus=4, gpus=8)
    require(gpus=8)
    monkeypatch.setenv("IMG2PROMPT_MAX_GPUS", "many")
    with pytest.raises(UserError, match="IMG2PROMPT_MAX_GPUS is 'many'; allowed: a whole number"):
        resources()


def test_ray_data_requests_no_more_than_an_autoscaling_cluster_may_grow_to(monkeypatch) -> None:
    cluster_of({"CPU": 2.0}, monkeypatch)
    options = ray.data.DataContext.get_current().execution_options
    monkeypatch.setenv("IMG2PROMPT_MAX_CPUS", "6")
    _limit_ray_data()
    limits = options.resource_limits
    assert (limits.cpu, limits.gpu, limits.memory) == (6, 0, float("inf"))
    monkeypatch.delenv("IMG2PROMPT_MAX_CPUS")
    _limit_ray_data()
    assert options.resource_limits == ray.data.ExecutionResources.for_limits()


class SlowStart:
    """Stands for `ray.init` on a busy machine, with a child process, in the first attempts."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.started: list[subprocess.Popen] = []

    def __call__(self, **options: object) -> None:
        if len(self.started) < self.failures:
            self.started.append(subprocess.Popen(["sleep", "100"]))
            raise RuntimeError("The current node timed out during startup.")


@pytest.mark.parametrize("failures", [1, 2])
def test_a_slow_start_is_repeated_once_and_leaves_no_process(failures, monkeypatch, caplog) -> None:
    init = SlowStart(failures)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # it would end the cluster of other tests
    if failures == 1:
        _start("/tmp/unused", {})
        assert "timed out during startup. Trying again" in caplog.text
    else:
        with pytest.raises(UserError, match=r"did not start within its time limits: .* too busy"):
            _start("/tmp/unused", {})
    assert [process.wait(10) for process in init.started] == [-9] * failures


def test_other_errors_of_the_start_are_raised_at_once(monkeypatch) -> None:
    def broken(**options: object) -> None:
        raise RuntimeError("Version mismatch")

    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(RuntimeError, match="Version mismatch"):
        _start("/tmp/unused", {})
