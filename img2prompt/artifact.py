"""A stage's output: a folder with data files, one receipt a file, and a manifest.

Writing goes through `Draft`, reading through `Artifact`. Files appear whole or not at all. A file's
receipt follows the file, and the manifest is marked done last. So a killed stage finds what is
finished by its receipts, a finished one is skipped, and one whose config or inputs changed is
refused. The done-marker-last idea is datatrove's (`executor/base.py`); fingerprints are ours.
"""

import hashlib
import json
import logging
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from img2prompt.config.base import Config, differences, without
from img2prompt.errors import UserError
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

MANIFEST = "manifest.json"
CONFIG = "config.json"
METRICS = "metrics.json"
RECEIPTS = "receipts"
READERS = 16
"""Receipts that are read at once."""


@dataclass(frozen=True)
class Receipt:
    """Proof that a file is complete."""

    rows: int
    digest: str


def _digest(data: bytes | pa.Buffer) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def fingerprint_of(value: Any) -> str:
    """16 hex digits of a JSON-able value."""
    return _digest(json.dumps(value, sort_keys=True).encode())


@dataclass(frozen=True)
class Artifact:
    """A finished folder."""

    uri: str
    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, Receipt]
    counts: Mapping[str, Any]

    @classmethod
    def load(cls, uri: str, stage: str) -> "Artifact":
        """Open a finished folder; an absent, unfinished or foreign one is a UserError."""
        found = _read_manifest(uri)
        if found is None:
            raise UserError(f"{uri} holds no finished {stage}: run the job that makes it first")
        if found["stage"] != stage:
            raise UserError(f"{uri} holds {found['stage']!r}, not {stage!r}: give another folder")
        if not found["done"]:
            raise UserError(f"{uri} was not finished: run its {stage} job again, it goes on")
        files = {name: Receipt(**receipt) for name, receipt in found["files"].items()}
        return cls(uri, stage, found["config"], found["inputs"], files, found["counts"])

    @cached_property
    def fingerprint(self) -> str:
        """Equal exactly when stage, config, inputs and data are equal.

        Reports (JSON and HTML) may hold times and are left out.
        """
        digests = {
            name: receipt.digest
            for name, receipt in self.files.items()
            if not name.endswith((".json", ".html"))
        }
        return fingerprint_of([self.stage, self.config, self.inputs, digests])

    def require_input(self, name: str, parent: "Artifact") -> None:
        """Refuse (UserError) when this was made from another `parent` than the one in use."""
        if self.inputs.get(name) != parent.fingerprint:
            raise UserError(
                f"{self.uri} was made from other {name} than {parent.uri} holds now: "
                f"delete it and make it again, or give another --out"
            )

    def names(self, prefix: str = "") -> list[str]:
        """Data files under a prefix, in order."""
        return sorted(name for name in self.files if name.startswith(prefix))

    def path(self, name: str) -> str:
        return join(self.uri, name)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return read_table(self.path(name), columns)

    def read_tables(self, prefix: str = "", columns: list[str] | None = None) -> pa.Table:
        """All tables under a prefix, one after the other."""
        names = [name for name in self.names(prefix) if name.endswith(".parquet")]
        if not names:
            raise UserError(f"{self.uri} has no file under {prefix!r}; it holds {self.names()}")
        return pa.concat_tables([self.read_table(name, columns) for name in names])


@dataclass(frozen=True)
class Draft:
    """A folder that a stage is writing. Plain data, so it travels to workers."""

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
        """Begin or go on; a folder of another stage, config or input is a UserError.

        `inputs` maps a name to a fingerprint. `check` is called unless the folder is finished, and
        before a new one is begun: what it raises leaves nothing behind. `free` are dotted settings
        that say how a run is made and not what comes out: they are no part of the artifact, and may
        change between a kill and the next start. An unfinished folder of another config or input
        that is `renewable` is deleted and begun anew, with a warning.
        """
        draft = cls(uri, stage, without(json.loads(config.to_json()), free), dict(inputs))
        found = _read_manifest(uri)
        if found is None or not found["done"]:
            check()
        others = draft._differences(found, free) if found else []
        if found and renewable and draft._forgets(found, others):
            logger.warning("%s is begun anew, since it differs in: %s", uri, "; ".join(others))
            delete_folder(join(uri, RECEIPTS))
            delete_folder(uri)
            found = None
        if found is None or _is_bare(uri):
            delete_folder(join(uri, RECEIPTS))
            write_bytes(join(uri, CONFIG), config.to_json().encode())
            draft._write_manifest(done=False, files={}, counts={})
        elif others:
            raise UserError(
                f"{uri} holds another run. It differs in:\n  "
                + "\n  ".join(others)
                + "\nGive another --out or --name, or delete that folder to make it again."
            )
        return draft

    def finished(self) -> Artifact | None:
        """The artifact, when an earlier run published it."""
        found = _read_manifest(self.uri)
        return Artifact.load(self.uri, self.stage) if found and found["done"] else None

    def receipts(self) -> dict[str, Receipt]:
        """Finished files by name. Thousands of them are read at once: a store takes its time."""
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
        """Write a data file, then its receipt."""
        write_bytes(join(self.uri, name), data)
        receipt = Receipt(rows, _digest(data))
        write_bytes(join(self.uri, RECEIPTS, name + ".json"), json.dumps(asdict(receipt)).encode())
        return receipt

    def write_table(self, name: str, table: pa.Table, rows_per_group: int = 65536) -> Receipt:
        """Write a Parquet file (zstd), then its receipt."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=rows_per_group, compression="zstd")
        return self.write_bytes(name, sink.getvalue(), rows=table.num_rows)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A table that this draft has written."""
        return read_table(join(self.uri, name), columns)

    def publish(self, **counts: Any) -> Artifact:
        """Mark the folder done. Every data file must have been written through this draft."""
        write_bytes(join(self.uri, METRICS), json.dumps(counts, indent=2).encode())
        self._write_manifest(done=True, files=self.receipts(), counts=counts)
        delete_folder(join(self.uri, RECEIPTS))
        return Artifact.load(self.uri, self.stage)

    def clear(self) -> None:
        """Delete all files that have a receipt."""
        for name in self.receipts():
            delete_file(join(self.uri, name))
        delete_folder(join(self.uri, RECEIPTS))

    def reopen(self) -> None:
        """Take a published folder as unfinished; its files must be written again."""
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

    def _forgets(self, found: Mapping[str, Any], others: Sequence[str]) -> bool:
        """Whether a folder is this stage's, unfinished and of another config or input."""
        return bool(others) and not found["done"] and found["stage"] == self.stage

    def _differences(self, found: Mapping[str, Any], free: Sequence[str]) -> list[str]:
        """What another manifest says otherwise, but for the settings that are free."""
        config = without(found["config"], free)
        return differences(
            {"stage": found["stage"], "config": config, "inputs": found["inputs"]},
            {"stage": self.stage, "config": self.config, "inputs": dict(self.inputs)},
        )


def _is_bare(uri: str) -> bool:
    """Whether a folder was begun but holds no work yet, so that it may be begun otherwise."""
    fs, path = open_uri(uri)
    found = fs.get_file_info(pafs.FileSelector(path))
    names = {info.base_name for info in found if not info.base_name.endswith(ASIDE)}
    return names <= {MANIFEST, CONFIG}


def _read_manifest(uri: str) -> dict[str, Any] | None:
    fs, path = open_uri(join(uri, MANIFEST))
    if fs.get_file_info(path).type == pafs.FileType.NotFound:
        return None
    try:
        with fs.open_input_stream(path) as stream:
            found = json.loads(stream.read())
        return {key: found[key] for key in ("stage", "done", "config", "inputs", "counts", "files")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{join(uri, MANIFEST)} is not a manifest ({error!r})") from None
