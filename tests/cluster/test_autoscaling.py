"""Ray's autoscaler adds a pretend-GPU node for a task and removes it when idle."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

DRIVER = """
import json, time
import ray
from img2prompt.distributed import cluster
from img2prompt.errors import UserError

@ray.remote(num_gpus=1)
def on_a_gpu():
    return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

def gpu_nodes():
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    return {node["NodeID"]: node["Labels"] for node in nodes}

with cluster.connect() as resources:
    report = {"maximum": [resources.cpus, resources.gpus], "before": gpu_nodes()}
    try:
        cluster.require(gpus=2)
    except UserError as error:
        report["refused"] = str(error)
    report["node"], report["gpus"] = ray.get(on_a_gpu.remote(), timeout=240)
    report["busy"] = gpu_nodes()
    deadline = time.monotonic() + 240
    while gpu_nodes() and time.monotonic() < deadline:
        time.sleep(1)
    report["idle"] = gpu_nodes()
print("REPORT " + json.dumps(report))
"""


def test_a_gpu_node_is_added_for_a_task_and_removed_when_idle(start_nodes, outside) -> None:
    options = ("--nodes", "1", "--cpus", "1", "--pretend-gpus", "1", "--autoscale")
    with start_nodes(*options) as exports:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            env=outside | exports,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    report = json.loads(line.removeprefix("REPORT "))
    assert report["maximum"] == [1, 1], "the ceilings that local_nodes.py exports"
    assert "needs 2 GPUs, the cluster has 1 at most" in report["refused"]
    assert report["before"] == {}
    assert report["busy"][report["node"]]["pool"] == "gpu"
    assert report["gpus"] == [0]
    assert report["idle"] == {}
