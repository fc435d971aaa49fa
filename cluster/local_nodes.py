"""Start several Ray nodes on this machine, to test a cluster before paying for one.

    python cluster/local_nodes.py --nodes 2 --cpus 2
    python cluster/local_nodes.py --nodes 2 --pretend-gpus 1 --autoscale

starts a head without CPUs, as in production, protected by a token, and beside it either fixed nodes
or Ray's autoscaler (v2), which adds nodes when work waits for them and removes idle ones. It prints
what to export in another shell, runs until Ctrl-C, and stops only what it started. `ray stop` is
not used: it ends every Ray on the machine.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import ray
import tyro
import yaml

HEAD_ID = "f" * 51 + "00000"
"""Id that Ray's pretend provider gives to the head."""
PRETEND_PROVIDER = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
"""Environment of a head whose autoscaler starts processes on this machine."""
OBJECT_STORE_BYTES = "150000000"
"""Object store of a node."""
START_TIMEOUT_S = 180
"""Seconds until a node that has not started counts as failed."""
Node = AbstractContextManager[None]
"""A node that runs inside a `with` block."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Number of nodes, their resources and ports."""

    nodes: int = 2
    """Worker nodes; with --autoscale their maximum."""
    cpus: int = 2
    """Logical CPUs of each worker node; may exceed the machine's cores."""
    pretend_gpus: int = 0
    """GPUs that each worker node claims to have."""
    autoscale: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start nodes when work needs them and remove them when idle, instead of a fixed number."""
    port: int = 0
    """Port of the cluster; 0: a free one."""
    dashboard_port: int = 0
    """Port of the dashboard and of job submission; 0: a free one."""
    folder: str = ""
    """Folder of sockets, logs and token; its path must be short. Empty: a temporary folder."""

    def __post_init__(self) -> None:
        if min(self.nodes, self.cpus) < 1 or self.pretend_gpus < 0:
            raise SystemExit("allowed: 1 or more --nodes and --cpus, 0 or more --pretend-gpus")

    @property
    def pool(self) -> str:
        """Label of the worker nodes."""
        return "gpu" if self.pretend_gpus else "cpu"


@dataclass(frozen=True)
class LocalCluster:
    """Addresses and files of one cluster."""

    address: str
    dashboard: str
    folder: Path
    ceilings: Mapping[str, str]
    """Variables that tell img2prompt's jobs how far the cluster may grow."""

    @property
    def token(self) -> Path:
        return self.folder / "token"

    def exports(self) -> dict[str, str]:
        """Return the environment variables for a client of this cluster."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            **self.ceilings,
        }


@contextmanager
def running(options: Options) -> Iterator[LocalCluster]:
    """Run the cluster while the block runs."""
    with ExitStack() as stack:
        cluster = _new_cluster(stack, options)
        environment = _environment(cluster)
        if options.autoscale:
            config = _write_autoscaler_config(cluster, options)
            stack.enter_context(_head(cluster, environment | PRETEND_PROVIDER, config))
        else:
            stack.enter_context(_head(cluster, environment, None))
            for number in range(options.nodes):
                # One after the other: nodes that start together may choose the same socket name.
                stack.enter_context(_worker(cluster, environment, options, number))
        yield cluster


def _write_autoscaler_config(cluster: LocalCluster, options: Options) -> Path:
    config = yaml.safe_load((Path(__file__).parent / "pretend.yaml").read_text())
    config["max_workers"] = options.nodes
    config["provider"] |= {"gcs_address": cluster.address, "head_node_id": HEAD_ID}
    worker = config["available_node_types"]["worker"]
    worker |= {"max_workers": options.nodes, "labels": {"pool": options.pool}}
    worker["resources"] |= {"CPU": options.cpus, "GPU": options.pretend_gpus}
    path = cluster.folder / "autoscaler.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _new_cluster(stack: ExitStack, options: Options) -> LocalCluster:
    """Choose ports and a folder, and write a new token."""
    folder = Path(options.folder or tempfile.mkdtemp(prefix="i2p-", dir="/tmp"))
    if not options.folder:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    address = f"{ray.util.get_node_ip_address()}:{options.port or free_port()}"
    dashboard = f"http://127.0.0.1:{options.dashboard_port or free_port()}"
    ceilings = {
        "IMG2PROMPT_MAX_CPUS": str(options.nodes * options.cpus),
        "IMG2PROMPT_MAX_GPUS": str(options.nodes * options.pretend_gpus),
    }
    cluster = LocalCluster(address, dashboard, folder, ceilings)
    cluster.token.touch(mode=0o600)
    cluster.token.write_text(secrets.token_hex(32))
    return cluster


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _environment(cluster: LocalCluster) -> dict[str, str]:
    """Return the nodes' environment: a submitted job takes `python` from the head's PATH."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}"
    return {
        **inherited,
        **cluster.ceilings,
        "PATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(cluster.token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _head(cluster: LocalCluster, environment: Mapping[str, str], config: Path | None) -> Node:
    host, port = cluster.address.rsplit(":", 1)
    arguments = [
        *("--head", "--node-ip-address", host, "--port", port),
        *("--num-cpus", "0", "--num-gpus", "0", "--object-store-memory", OBJECT_STORE_BYTES),
        *("--dashboard-port", cluster.dashboard.rsplit(":", 1)[1]),
        *("--dashboard-agent-listen-port", "0", "--ray-client-server-port", str(free_port())),
        *("--temp-dir", str(cluster.folder / "ray")),
        *(("--autoscaling-config", str(config)) if config else ()),
    ]
    return _ray_start(arguments, environment, cluster.folder / "head.log")


def _worker(
    cluster: LocalCluster, environment: Mapping[str, str], options: Options, number: int
) -> Node:
    arguments = [
        *("--address", cluster.address, "--node-manager-port", "0", "--object-manager-port", "0"),
        *("--dashboard-agent-listen-port", "0", "--include-log-monitor", "false"),
        *("--num-cpus", str(options.cpus), "--num-gpus", str(options.pretend_gpus)),
        *("--labels", f"pool={options.pool}", "--object-store-memory", OBJECT_STORE_BYTES),
    ]
    return _ray_start(arguments, environment, cluster.folder / f"node-{number}.log")


@contextmanager
def _ray_start(arguments: list[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """Run one node, in a process group of its own, while the block runs."""
    ray_command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            ray_command, env=dict(environment), stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_for_start(process, log)
        yield
    finally:
        _stop(process)


def _wait_for_start(process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"a node did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.2)


def _stop(process: subprocess.Popen) -> None:
    """Terminate the node, then kill the rest of its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with running(options) as cluster:
        for name, value in cluster.exports().items():
            print(f"export {name}={value}")
        print("python cluster/submit.py demo --out /tmp/img2prompt-demo")
        print("Ctrl-C stops the cluster", flush=True)
        while _is_up(cluster.address):
            time.sleep(1)
        sys.exit("the head has ended: the other nodes are stopped; start the cluster again")


def _is_up(address: str) -> bool:
    """Return whether the head's process listens."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError:
        return False
    return True


def _leave(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore a second Ctrl-C while the nodes stop
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    main()
