"""Several Ray nodes on this machine, to try what a real cluster does before paying for one.

    python cluster/local_nodes.py --nodes 2 --cpus 2
    python cluster/local_nodes.py --nodes 2 --pretend-gpus 1 --autoscale

starts a head without CPUs, as in production, protected by a token, and beside it either fixed nodes
or Ray's autoscaler (v2) with nodes that come when work waits for them and go when they idle. It
prints what to export in another shell, stays until Ctrl-C, and stops only what it started.
`ray stop` is not used: it ends every Ray on the machine.
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
"""Name that Ray's pretend provider gives to the head."""
PRETEND_PROVIDER = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
"""Environment of a head whose autoscaler starts processes of this machine."""
STORE = "150000000"
"""Object store of a node in bytes."""
PATIENCE = 180
"""Seconds until a node that has not come up counts as failed."""
Node = AbstractContextManager[None]
"""A node that is up inside a `with` block."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How many nodes, and where they listen."""

    nodes: int = 2
    """Worker nodes; with --autoscale the most that may come."""
    cpus: int = 2
    """Logical CPUs of each worker node; they may exceed the cores."""
    pretend_gpus: int = 0
    """GPUs that each worker node claims to have."""
    autoscale: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Start nodes when work needs them and remove them when idle, instead of a fixed number."""
    port: int = 0
    """Port of the cluster; 0: a free one."""
    dashboard_port: int = 0
    """Port of the dashboard and of job submission; 0: a free one."""
    folder: str = ""
    """Folder of sockets, logs and token, a short path; empty: a new one, removed at the end."""

    def __post_init__(self) -> None:
        if min(self.nodes, self.cpus) < 1 or self.pretend_gpus < 0:
            raise SystemExit("--nodes and --cpus are 1 or more, --pretend-gpus 0 or more")

    @property
    def pool(self) -> str:
        """Label of the worker nodes."""
        return "gpu" if self.pretend_gpus else "cpu"


@dataclass(frozen=True)
class Place:
    """Addresses and files of one cluster."""

    address: str
    dashboard: str
    folder: Path
    ceilings: Mapping[str, str]
    """What img2prompt's jobs are told about how far the cluster grows."""

    @property
    def token(self) -> Path:
        return self.folder / "token"

    def exports(self) -> dict[str, str]:
        """Variables that a client of this cluster sets."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            **self.ceilings,
        }


@contextmanager
def running(options: Options) -> Iterator[Place]:
    """The cluster, while the block runs."""
    with ExitStack() as stack:
        place = _place(stack, options)
        environment = _environment(place)
        if options.autoscale:
            config = _write_autoscaler_config(place, options)
            stack.enter_context(_head(place, environment | PRETEND_PROVIDER, config))
        else:
            stack.enter_context(_head(place, environment, None))
            for number in range(options.nodes):
                # One after the other: nodes that start together fight over a socket's name.
                stack.enter_context(_worker(place, environment, options, number))
        yield place


def _write_autoscaler_config(place: Place, options: Options) -> Path:
    config = yaml.safe_load((Path(__file__).parent / "pretend.yaml").read_text())
    config["max_workers"] = options.nodes
    config["provider"] |= {"gcs_address": place.address, "head_node_id": HEAD_ID}
    worker = config["available_node_types"]["worker"]
    worker |= {"max_workers": options.nodes, "labels": {"pool": options.pool}}
    worker["resources"] |= {"CPU": options.cpus, "GPU": options.pretend_gpus}
    path = place.folder / "autoscaler.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _place(stack: ExitStack, options: Options) -> Place:
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
    place = Place(address, dashboard, folder, ceilings)
    place.token.touch(mode=0o600)
    place.token.write_text(secrets.token_hex(32))
    return place


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _environment(place: Place) -> dict[str, str]:
    """Of the nodes: `python` of a submitted job is looked up on the head's PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {
        **kept,
        **place.ceilings,
        "PATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(place.token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _head(place: Place, environment: Mapping[str, str], config: Path | None) -> Node:
    host, port = place.address.rsplit(":", 1)
    arguments = [
        *("--head", "--node-ip-address", host, "--port", port),
        *("--num-cpus", "0", "--num-gpus", "0", "--object-store-memory", STORE),
        *("--dashboard-port", place.dashboard.rsplit(":", 1)[1]),
        *("--dashboard-agent-listen-port", "0", "--ray-client-server-port", str(free_port())),
        *("--temp-dir", str(place.folder / "ray")),
        *(("--autoscaling-config", str(config)) if config else ()),
    ]
    return _ray_start(arguments, environment, place.folder / "head.log")


def _worker(place: Place, environment: Mapping[str, str], options: Options, number: int) -> Node:
    arguments = [
        *("--address", place.address, "--node-manager-port", "0", "--object-manager-port", "0"),
        *("--dashboard-agent-listen-port", "0", "--include-log-monitor", "false"),
        *("--num-cpus", str(options.cpus), "--num-gpus", str(options.pretend_gpus)),
        *("--labels", f"pool={options.pool}", "--object-store-memory", STORE),
    ]
    return _ray_start(arguments, environment, place.folder / f"node-{number}.log")


@contextmanager
def _ray_start(arguments: list[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """One node in a process group of its own, up when the block begins and gone when it ends."""
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
    deadline = time.monotonic() + PATIENCE
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"a node did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.2)


def _stop(process: subprocess.Popen) -> None:
    """Ask the node to leave, then end what is left of its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with running(options) as place:
        for name, value in place.exports().items():
            print(f"export {name}={value}")
        print("ray job submit --working-dir . -- python jobs/demo.py --out /tmp/img2prompt-demo")
        print("Ctrl-C stops the cluster", flush=True)
        signal.pause()


def _leave(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the nodes are being stopped: once is enough
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    main()
