"""A stage's output while it is written: data files, one receipt a file, and a manifest.

Stages write through `Draft` and read through `Artifact`. Files appear whole or not at all. A file's
receipt is written after the file, and the manifest is marked done last. So a killed stage resumes
after the files that have receipts, a finished stage is skipped, and a stage whose config or inputs
changed is refused. A lease (`lease.py`) keeps a second job out of a folder that is being written.
Writing a done marker last is datatrove's idea (`executor/base.py`); the
fingerprints are ours.
"""

import json
import logging
import posixpath
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from img2prompt.artifact import (
    CONFIG,
    MANIFEST,
    METRICS,
    Artifact,
    Receipt,
    digest_of,
    read_manifest,
)
from img2prompt.config.base import Config, completed, differences, without
from img2prompt.errors import UserError
from img2prompt.lease import KEEPER, LEASE
from img2prompt.storage import (
    ASIDE,
    delete_file,
    delete_folder,
    join,
    open_uri,
    read_table,
    write_bytes,
)

logger = logging.getLogger(__name__)

RECEIPTS = "receipts"
READERS = 16
"""Threads that read receipts."""


@dataclass(frozen=True)
class Draft:
    """A folder that a stage writes to. Plain data, so it can be sent to workers.

    `open` takes a lease on an unfinished folder, which ends with `publish`, or with the last
    reference to the returned object. Copies in workers have none.
    """

    uri: str
    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]

    @classmethod
    def open(
        cls,
        uri: str,
        stage: str,
        config: Config,
        inputs: Mapping[str, str],
        check: Callable[[], None] = lambda: None,
        *,
        free: Sequence[str] = (),
        renewable: bool = False,
    ) -> "Draft":
        """Start a folder, or resume the one of an earlier start.

        `inputs` are fingerprints by name. `check` is called unless the folder is finished, before
        anything is written. `free` are dotted settings that do not change the result: they are not
        part of the artifact, and may change before a killed stage resumes. `renewable` restarts an
        unfinished folder of another config or input, with a warning, instead of refusing it.

        Raises:
            UserError: the folder has another stage, config or input, or another job writes it.
        """
        draft = cls(uri, stage, without(json.loads(config.to_json()), free), dict(inputs))
        manifest = read_manifest(uri)
        if manifest is not None and manifest["done"]:
            if changes := draft._changes(manifest, type(config), free):
                raise UserError(_refusal(uri, changes))
            return draft
        check()
        draft.hold()
        draft._start(config, free, renewable)
        return draft

    def _start(self, config: Config, free: Sequence[str], renewable: bool) -> None:
        """Begin the folder, or check that it can be resumed."""
        manifest = read_manifest(self.uri)  # now that no other job changes it
        changes = self._changes(manifest, type(config), free) if manifest else []
        if manifest and changes and renewable and self._is_unfinished(manifest):
            logger.warning("%s starts over: it differs in: %s", self.uri, "; ".join(changes))
            KEEPER.end(self.uri)
            delete_folder(join(self.uri, RECEIPTS))
            delete_folder(self.uri)
            self.hold()
            manifest = None
        if manifest is None or _is_bare(self.uri):
            delete_folder(join(self.uri, RECEIPTS))
            write_bytes(join(self.uri, CONFIG), config.to_json().encode())
            self._write_manifest(done=False, files={}, counts={})
        elif changes:
            raise UserError(_refusal(self.uri, changes))

    def hold(self) -> None:
        """Take a lease for as long as this object lives; another job that has it is a UserError."""
        if lease := KEEPER.hold(self.uri):
            weakref.finalize(self, KEEPER.release, lease)

    def require_lease(self) -> None:
        """Raise a UserError if another job has taken over the folder."""
        KEEPER.require(self.uri)

    def finished(self) -> Artifact | None:
        """Return the artifact if an earlier start published it."""
        manifest = read_manifest(self.uri)
        return Artifact.load(self.uri, self.stage) if manifest and manifest["done"] else None

    def receipts(self) -> dict[str, Receipt]:
        """Return the receipts of finished files by name.

        They are read in parallel: an object store answers slowly, and a stage has thousands.
        """
        fs, path = open_uri(join(self.uri, RECEIPTS))
        selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
        infos = [info for info in fs.get_file_info(selector) if info.path.endswith(".json")]

        def read(info: pafs.FileInfo) -> tuple[str, Receipt]:
            name = posixpath.relpath(info.path, path).removesuffix(".json")
            with fs.open_input_stream(info.path) as stream:
                return name, Receipt(**json.loads(stream.read()))

        with ThreadPoolExecutor(READERS) as pool:
            return dict(pool.map(read, infos))

    def write_bytes(self, name: str, data: bytes | pa.Buffer, rows: int = 1) -> Receipt:
        """Write a data file, then its receipt.

        Raises:
            UserError: the disk is full, or another job has taken over the folder.
        """
        self.require_lease()
        write_bytes(join(self.uri, name), data)
        receipt = Receipt(rows, digest_of(data))
        write_bytes(join(self.uri, RECEIPTS, name + ".json"), json.dumps(asdict(receipt)).encode())
        return receipt

    def write_table(self, name: str, table: pa.Table, rows_per_group: int = 65536) -> Receipt:
        """Write a Parquet file (zstd), then its receipt."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=rows_per_group, compression="zstd")
        return self.write_bytes(name, sink.getvalue(), rows=table.num_rows)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read a table that this draft has written."""
        return read_table(join(self.uri, name), columns)

    def publish(self, **counts: Any) -> Artifact:
        """Mark the folder done, with its counts, and return it.

        Every data file must have been written through this draft.

        Raises:
            UserError: another job has taken over the folder.
        """
        self.require_lease()
        write_bytes(join(self.uri, METRICS), json.dumps(counts, indent=2).encode())
        self._write_manifest(done=True, files=self.receipts(), counts=counts)
        delete_folder(join(self.uri, RECEIPTS))
        KEEPER.end(self.uri)
        return Artifact.load(self.uri, self.stage)

    def clear(self) -> None:
        """Delete all files that have a receipt."""
        for name in self.receipts():
            delete_file(join(self.uri, name))
        delete_folder(join(self.uri, RECEIPTS))

    def reopen(self) -> None:
        """Mark a published folder unfinished; its files must be written again.

        Raises:
            UserError: another job writes it.
        """
        self.hold()
        self._write_manifest(done=False, files={}, counts={})

    def _write_manifest(
        self, *, done: bool, files: Mapping[str, Receipt], counts: Mapping[str, Any]
    ) -> None:
        manifest = {
            "stage": self.stage,
            "done": done,
            "config": self.config,
            "inputs": self.inputs,
            "counts": counts,
            "files": {name: asdict(receipt) for name, receipt in sorted(files.items())},
        }
        data = json.dumps(manifest, indent=2).encode()
        write_bytes(join(self.uri, MANIFEST), data)

    def _is_unfinished(self, manifest: Mapping[str, Any]) -> bool:
        """Return True for an unfinished folder of this stage."""
        return not manifest["done"] and manifest["stage"] == self.stage

    def _changes(
        self, manifest: Mapping[str, Any], kind: type[Config], free: Sequence[str]
    ) -> list[str]:
        """Return a line for each difference to another manifest."""
        saved = without(completed(kind, manifest["config"]), free)
        return differences(
            {"stage": manifest["stage"], "config": saved, "inputs": manifest["inputs"]},
            {"stage": self.stage, "config": self.config, "inputs": dict(self.inputs)},
        )


def _refusal(uri: str, changes: Sequence[str]) -> str:
    lines = "".join(f"\n  {change}" for change in changes)
    return (
        f"{uri} holds another run. It differs in:{lines}\nGive another --out or --name, or delete "
        "that folder to make it again."
    )


def _is_bare(uri: str) -> bool:
    """Return True for a folder without data files, which may start over with another config."""
    fs, path = open_uri(uri)
    infos = fs.get_file_info(pafs.FileSelector(path))
    names = {info.base_name for info in infos if not info.base_name.endswith(ASIDE)}
    return names <= {MANIFEST, CONFIG, LEASE}
