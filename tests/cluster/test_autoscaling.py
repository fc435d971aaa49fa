"""Ray's autoscaler brings a pretend-GPU node for a task and takes it away again."""

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

with cluster.connect() as there:
    told = {"most": [there.cpus, there.gpus], "first": gpu_nodes()}
    try:
        cluster.require(gpus=2)
    except UserError as error:
        told["refused"] = str(error)
    told["node"], told["gpus"] = ray.get(on_a_gpu.remote(), timeout=240)
    told["busy"] = gpu_nodes()
    deadline = time.monotonic() + 240
    while gpu_nodes() and time.monotonic() < deadline:
        time.sleep(1)
    told["idle"] = gpu_nodes()
print("TOLD " + json.dumps(told))
"""


def test_a_gpu_node_comes_for_a_task_and_goes_when_idle(start_nodes, outside) -> None:
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
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    told = json.loads(line.removeprefix("TOLD "))
    assert told["most"] == [1, 1], "as far as it may grow"
    assert "needs 2 GPUs, the cluster has 1 at most" in told["refused"]
    assert told["first"] == {}
    assert told["busy"][told["node"]]["pool"] == "gpu"
    assert told["gpus"] == [0]
    assert told["idle"] == {}
