"""Start and stop clusters of cluster/local_nodes.py as a user would."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def processes(column: str, ids: set[int]) -> list[int]:
    """Return living processes whose parent (`ppid`) or session (`sid`) is in `ids`."""
    command = ["ps", "-eo", f"pid=,{column}=,stat="]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, key, stat in rows if int(key) in ids and stat[0] != "Z"]


def stop(script: subprocess.Popen) -> set[int]:
    """Press Ctrl-C, kill as a last resort; return the sessions of the nodes."""
    nodes = set(processes("ppid", {script.pid}))
    script.send_signal(signal.SIGINT)
    try:
        script.wait(timeout=120)
    except subprocess.TimeoutExpired:
        script.kill()
        script.wait()
        for pid in processes("sid", nodes):
            os.kill(pid, signal.SIGKILL)
        raise
    return nodes


def clean_environment() -> dict[str, str]:
    """Return this process's environment without the variables of any cluster."""
    return {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "IMG2PROMPT_"))}


@contextmanager
def local_nodes(*options: str) -> Iterator[dict[str, str]]:
    """Run cluster/local_nodes.py, yield its exports, and check that it leaves no process behind."""
    script = subprocess.Popen(
        [sys.executable, ROOT / "cluster" / "local_nodes.py", *options],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = []
        for line in script.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        assert script.poll() is None, "".join(lines)
        exports = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
        yield dict(line.strip().split("=", 1) for line in exports)
    finally:
        nodes = stop(script)
    assert nodes
    deadline = time.monotonic() + 30  # a worker inside a task exits a little later
    while processes("sid", nodes) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert processes("sid", nodes) == []


def kill(address: str, title_part: str) -> None:
    """SIGKILL the newest process with `title_part` in its title on the cluster's newest node.

    Between two tasks a worker has another title, so the process is looked for a few times.
    """
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if pid := _process(address, title_part):
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError(f"no process with {title_part!r} in its title on the nodes of {address}")


def _process(address: str, title_part: str) -> int:
    """Return the id of such a process, 0 if there is none."""
    command = ["ps", "-ww", "-eo", "pid=,sid=,args=", "--sort=-start_time"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    nodes = [sid for _, sid, title in rows if f"start --block --address {address}" in title]
    pids = (
        pid for node in nodes for pid, sid, title in rows if sid == node and title_part in title
    )
    return int(next(pids, 0))
