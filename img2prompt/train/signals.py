"""Signals to the process that starts a run."""

import contextlib
import posixpath
import signal
import threading
from collections.abc import Iterator

from img2prompt.storage import delete_folder, write_bytes


@contextlib.contextmanager
def sigterm_requests_stop(file: str) -> Iterator[None]:
    """In the main thread, SIGTERM writes the file that makes the workers save and end."""
    delete_folder(posixpath.dirname(file))
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: write_bytes(file, b""))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
