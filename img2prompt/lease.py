"""Leases: one job at a time writes a folder.

While a job writes a folder, `lease.json` beside the manifest names its host, process and start, and
one thread of the process renews all leases that it holds. Another job is refused. It takes over at
once when the holder was a process of this machine that has ended, else when the lease has not
changed for DEAD_S seconds. Clocks of two machines are not compared for that: the waiting job
watches whether the lease changes (as Amazon's DynamoDB lock client watches a record's version).

When two jobs start in the same moment, a local disk lets only one of them create the file. An
object store does not, and neither takes over exclusively, so a job reads its lease back after a
while. If two still hold one, the next renewal finds out, and the loser writes nothing more.

A job loses a lease when it is suspended or cut off for long. Its driver may still be suspended
then, so its workers read the lease themselves before they write (a fencing token, as Kleppmann
calls it in "How to do distributed locking", 2016).
"""

import contextlib
import json
import logging
import os
import threading
import time
from dataclasses import asdict, replace

from img2prompt.errors import UserError
from img2prompt.holder import Holder, read_holder, this_process, time_now
from img2prompt.storage import (
    absolute,
    create_bytes,
    delete_file,
    exists,
    is_local,
    join,
    open_uri,
    write_bytes,
)

logger = logging.getLogger(__name__)

LEASE = "lease.json"
WORKER = "IMG2PROMPT_WORKER"
"""Environment variable of the processes that a job starts: the token of its driver, whose leases
are theirs too."""
RENEW_S = 10.0
"""Seconds between two renewals."""
DEAD_S = 60.0
"""Seconds without renewal after which a job on another machine counts as ended."""
STALE_S = 3600.0
"""Age of a renewal, by the clocks of two machines, from which on nobody waits DEAD_S."""
SETTLE_S = 0.05
"""Least seconds after which a lease is read back."""


class Lease:
    """A held folder; `release` lets other jobs write it."""

    def __init__(self, uri: str, holder: Holder) -> None:
        self.uri = uri
        self.users = 0
        self.is_lost = False
        self.is_released = False
        self._holder = holder
        self._lock = threading.RLock()

    @property
    def path(self) -> str:
        return join(self.uri, LEASE)

    def is_of(self, pid: int) -> bool:
        return self._holder.pid == pid

    def acquire(self) -> None:
        """Take the lease; wait for DEAD_S at most for a job of another machine.

        Raises:
            UserError: another job holds it.
        """
        holder = read_holder(self.path)
        if holder is None and is_local(self.uri):
            if create_bytes(self.path, self._encode()):
                return
            holder = read_holder(self.path)
        if holder is not None and holder.token != self._holder.token:
            self._wait_until_ended(holder)
            logger.warning("%s was held by %s, which has ended: taken over", self.uri, holder)
        began = time.monotonic()
        write_bytes(self.path, self._encode())
        time.sleep(max(SETTLE_S, 3 * (time.monotonic() - began)))
        holder = read_holder(self.path)
        if holder is None or holder.token != self._holder.token:
            raise UserError(_refusal(self.uri, holder))

    def _wait_until_ended(self, holder: Holder) -> None:
        """Return when a holder has ended; raise a UserError as soon as it is known to run."""
        if holder.has_ended:
            return
        if holder.machine and holder.machine == self._holder.machine:
            raise UserError(_refusal(self.uri, holder))
        if time.time() - holder.renewed > STALE_S:
            return
        logger.warning("%s is held by %s: waiting %.0f s for a renewal", self.uri, holder, DEAD_S)
        deadline = time.monotonic() + DEAD_S
        while time.monotonic() < deadline:
            time.sleep(min(1.0, DEAD_S / 10))
            now = read_holder(self.path)
            if now is None:
                return
            if (now.token, now.renewals) != (holder.token, holder.renewals):
                raise UserError(_refusal(self.uri, now))

    def renew(self) -> None:
        """Write the lease anew, or note that another job has it or that it was deleted."""
        with self._lock:
            if self.is_released or self.is_lost:
                return
            now = read_holder(self.path)
            if now is None or now.token != self._holder.token:
                self.is_lost = True
                by = f"was taken over by {now}" if now else "was deleted"
                logger.error("%s %s: this job writes nothing more there", self.uri, by)
                return
            self._holder = replace(self._holder, renewals=self._holder.renewals + 1)
            write_bytes(self.path, self._encode())
            if self.is_released:  # by a finalizer that ran in this thread
                self._delete()

    def release(self) -> None:
        """Delete the lease; a second call does nothing."""
        with self._lock:
            if not self.is_released:
                self.is_released = True
                self._delete()

    def _delete(self) -> None:
        """Delete the file if it is this process's own; an unreachable store is no error."""
        with contextlib.suppress(OSError):
            now = read_holder(self.path)
            if now is not None and now.token == self._holder.token:
                delete_file(self.path)

    def _encode(self) -> bytes:
        return json.dumps(asdict(replace(self._holder, renewed=time.time())), indent=2).encode()


def _refusal(uri: str, holder: Holder | None) -> str:
    return (
        f"{uri} is being written by another job: {holder}. Wait until it ends, or stop it and run "
        f"this command again: it takes over at once on the same machine, and after {DEAD_S:.0f} s "
        "from another one. To run beside it, give another --out or --name"
    )


class LeaseKeeper:
    """All leases of this process, and the thread that renews them."""

    def __init__(self) -> None:
        self._holder: Holder | None = None
        self._leases: dict[str, Lease] = {}
        self._lock = threading.RLock()  # a finalizer may run inside a call
        self._thread: threading.Thread | None = None

    @property
    def token(self) -> str:
        """Token of this process, which its workers have in the variable WORKER."""
        return self._this_process().token

    def _this_process(self) -> Holder:
        with self._lock:
            self._holder = self._holder or this_process()
            return self._holder

    def hold(self, uri: str) -> Lease | None:
        """Take a lease on a folder; one on a folder above it, or of the driver, serves as well.

        Returns:
            The lease, for `release`; None in a worker process.

        Raises:
            UserError: another job holds it.
        """
        if WORKER in os.environ:
            return None
        uri = _normal(uri)
        lease = self._lease_over(uri)
        if lease is None or lease.is_lost or not exists(lease.path):
            lease = Lease(uri, replace(self._this_process(), since=time_now()))
            lease.acquire()
        with self._lock:
            lease.users += 1
            self._leases[lease.uri] = lease
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_all, daemon=True)
                self._thread.start()
        return lease

    def release(self, lease: Lease) -> None:
        """End one use of a lease; the last one deletes it."""
        with self._lock:
            lease.users -= 1
            is_last = lease.users == 0 and self._leases.get(lease.uri) is lease
        if is_last and lease.is_of(os.getpid()):  # not in a forked child
            self.end(lease.uri)

    def end(self, uri: str) -> None:
        """Delete the lease on exactly this folder, whoever uses it."""
        with self._lock:
            lease = self._leases.pop(_normal(uri), None)
        if lease is not None:
            lease.release()

    def require(self, uri: str) -> None:
        """Raise a UserError if this job had a lease over a folder and has lost it.

        A worker process reads the leases of the folder and of those above it: another job must not
        have one, unless its driver has one too.
        """
        if driver := os.environ.get(WORKER):
            is_lost = _is_of_others(_normal(uri), driver)
        else:
            lease = self._lease_over(_normal(uri))
            is_lost = lease is not None and lease.is_lost
        if is_lost:
            raise UserError(
                f"{uri} has another writer, or its {LEASE} was deleted: this job was not able to "
                "renew it in time, or was stopped for long; it writes nothing more there"
            )

    def _lease_over(self, uri: str) -> Lease | None:
        with self._lock:
            held = self._leases.values()
            return next((lease for lease in held if _is_inside(uri, lease.uri)), None)

    def _renew_all(self) -> None:
        while True:
            time.sleep(RENEW_S)
            with self._lock:
                leases = list(self._leases.values())
                if not leases:
                    self._thread = None
                    return
            for lease in leases:
                try:
                    lease.renew()
                except (OSError, UserError) as error:
                    logger.warning("%s could not be renewed: %s", lease.path, error)


def _normal(uri: str) -> str:
    """Return one spelling of a folder: its path on a local disk, else its URI."""
    path = open_uri(uri)[1] if uri.startswith("file://") else absolute(uri)
    return path.rstrip("/")


def _is_inside(uri: str, folder: str) -> bool:
    """Return True for the folder itself too."""
    return f"{uri}/".startswith(f"{folder}/")


def _is_of_others(uri: str, token: str) -> bool:
    """Return True if others hold a folder or those above it, and the job with this token none."""
    scheme, mark, path = uri.rpartition("://")
    names = path.split("/")
    has_holder = False
    for count in range(len(names), 1, -1):
        holder = read_holder(join(scheme + mark + "/".join(names[:count]), LEASE))
        if holder is not None and holder.token == token:
            return False
        has_holder = has_holder or holder is not None
    return has_holder


KEEPER = LeaseKeeper()
