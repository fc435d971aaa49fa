"""A job for test_submit.py that reports which img2prompt a worker imports, and from where."""

import json
import os

import ray

import img2prompt
from img2prompt.config.train import PlanConfig
from img2prompt.distributed import cluster


@ray.remote
def probe(plan: PlanConfig) -> dict[str, str]:
    return {
        "offline": os.environ["HF_HUB_OFFLINE"],
        "plan": plan.fingerprint(),
        "package": img2prompt.__file__,
        "node": ray.get_runtime_context().get_node_id(),
    }


if __name__ == "__main__":
    with cluster.connect() as resources:
        report = ray.get(probe.remote(PlanConfig(lora_rate=0.5)))
        report |= {"cpus": resources.cpus, "head": ray.get_runtime_context().get_node_id()}
    print("PROBE " + json.dumps(report))
