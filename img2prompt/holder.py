"""The process that writes a folder: its description in a lease, and whether it still runs."""

import json
import os
import socket
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from img2prompt.storage import exists, read_bytes

TRIES, TRY_AGAIN_S = 5, 0.1
"""Reads of a lease that may be written in the same moment, and the seconds between them."""


@dataclass(frozen=True)
class Holder:
    """The process that writes a folder, as its lease describes it."""

    token: str
    """Random, different for each process."""
    job: str
    """The script, and the submission id in a Ray cluster."""
    host: str
    machine: str
    """Identifies the running system and its process numbers; empty if unknown."""
    pid: int
    born: str
    """When the process started, as the system counts; process numbers are used again."""
    since: str
    """When it took the lease, UTC."""
    renewals: int = 0
    renewed: float = 0.0
    """Seconds since 1970 by the clock of its machine."""

    def __str__(self) -> str:
        return f"{self.job}, process {self.pid} on {self.host}, since {self.since}"

    @property
    def has_ended(self) -> bool:
        """Return True if this was a process of this machine that has ended."""
        return (
            bool(self.machine) and self.machine == _machine() and self.born != _start_of(self.pid)
        )


def this_process() -> Holder:
    """Describe this process."""
    return Holder(
        token=uuid.uuid4().hex,
        job=_job_name(),
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        born=_start_of(os.getpid()),
        since=time_now(),
    )


def time_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _job_name() -> str:
    """Return the name of the script, never its arguments, which may hold keys."""
    name = Path(sys.argv[0]).name or "python"
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submission = (submitted.get("metadata") or {}).get("job_submission_id")
    return f"{name} ({submission})" if submission else name


def _machine() -> str:
    """Return the id of this boot and the namespace of its process numbers; empty without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """Return when a process started, in ticks since boot; empty if it has ended."""
    try:
        # The name of the program, in parentheses, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def read_holder(path: str) -> Holder | None:
    """Read a lease; None if there is none. One that stays unreadable counts as that of nobody."""
    for _ in range(TRIES):
        try:
            return Holder(**json.loads(read_bytes(path))) if exists(path) else None
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            time.sleep(TRY_AGAIN_S)
    return Holder("", "an unreadable lease", "?", _machine(), -1, "-", "?")
