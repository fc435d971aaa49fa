"""Each query of the Grafana board has data in a real Prometheus that scrapes a real Ray node."""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from img2prompt.distributed import metrics

CLUSTER = Path(__file__).parents[2] / "cluster"
LINE = {
    "loss": 0.4,
    "data_s": 0.1,
    "compute_s": 0.2,
    "step_s": 0.1,
    "images_per_s": 12.0,
    "worker_hours": 0.5,
    "mfu": 0.3,
}


def queries() -> list[str]:
    board = json.loads((CLUSTER / "grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def record_everything() -> None:
    """Record what a preparation, a run and a search record."""
    metrics.count("img2prompt_rows", 100, stage="features")
    metrics.record("img2prompt_rows_per_second", 50.0, stage="features")
    metrics.count_rejected("clean", {"empty prompt": 3})
    metrics.record_line("lora", LINE)
    metrics.record_line("lora", {"val_cosine": 0.6})
    metrics.record("img2prompt_trials", 2, search="mine", state="running")
    for name in ("best_val_cosine", "device_hours", "device_hours_left"):
        metrics.record(f"img2prompt_search_{name}", 0.7, search="mine")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def prometheus(cluster, tmp_path: Path) -> Iterator[str]:
    """Yield the address of a Prometheus that scrapes the nodes of the test's cluster."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs Prometheus")
    config = yaml.safe_load((CLUSTER / "prometheus.yaml").read_text())
    nodes = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    config["global"]["scrape_interval"] = "1s"
    config["scrape_configs"][0] = {"job_name": "ray", "static_configs": [{"targets": nodes}]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={tmp_path / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"http://{address}"
    server.kill()
    server.wait()


def ask(address: str, query: str) -> list[Any]:
    url = f"{address}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


@pytest.mark.ray
def test_each_panel_has_data(prometheus) -> None:
    record_everything()
    waiting, deadline = queries(), time.monotonic() + 120
    while waiting and time.monotonic() < deadline:
        time.sleep(1)
        try:
            waiting = [query for query in waiting if not ask(prometheus, query)]
        except OSError:
            continue  # it has not started yet
    assert waiting == []
    (stall,) = ask(prometheus, "ray_img2prompt_data_stall_share")
    assert stall["metric"]["run"] == "lora"
    assert float(stall["value"][1]) == pytest.approx(0.25)


def test_the_board_shows_every_metric() -> None:
    text = " ".join(queries())
    assert [name for name in metrics.METRICS if f"ray_{name}" not in text] == []


def test_without_a_cluster_nothing_is_recorded(monkeypatch) -> None:
    monkeypatch.setattr(metrics, "_has_cluster", lambda: False)
    monkeypatch.setattr(metrics, "_metric", lambda name: pytest.fail(f"{name} was recorded"))
    record_everything()
