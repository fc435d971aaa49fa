"""A stage's finished output: a folder with data files and a manifest, which `draft.py` writes."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from img2prompt.errors import UserError
from img2prompt.storage import (
    join,
    open_uri,
    read_table,
)

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CONFIG = "config.json"
METRICS = "metrics.json"


@dataclass(frozen=True)
class Receipt:
    """Proof that a file is complete."""

    rows: int
    digest: str


def digest_of(data: bytes | pa.Buffer) -> str:
    """Return 16 hex digits that identify bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def fingerprint_of(value: Any) -> str:
    """Return 16 hex digits that identify a JSON-able value."""
    return digest_of(json.dumps(value, sort_keys=True).encode())


@dataclass(frozen=True)
class Artifact:
    """A finished folder, to read from."""

    uri: str
    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, Receipt]
    counts: Mapping[str, Any]

    @classmethod
    def load(cls, uri: str, stage: str) -> "Artifact":
        """Open a finished folder.

        Raises:
            UserError: the folder is absent, unfinished or of another stage.
        """
        manifest = read_manifest(uri)
        if manifest is None:
            raise UserError(f"{uri} holds no finished {stage}: run the job that makes it first")
        if manifest["stage"] != stage:
            raise UserError(
                f"{uri} holds {manifest['stage']!r}, not {stage!r}: give another folder"
            )
        if not manifest["done"]:
            raise UserError(f"{uri} was not finished: run its {stage} job again, it resumes")
        files = {name: Receipt(**receipt) for name, receipt in manifest["files"].items()}
        return cls(uri, stage, manifest["config"], manifest["inputs"], files, manifest["counts"])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits, equal exactly when stage, config, inputs and data are equal.

        JSON and HTML files are left out: these reports may contain times.
        """
        digests = {
            name: receipt.digest
            for name, receipt in self.files.items()
            if not name.endswith((".json", ".html"))
        }
        return fingerprint_of([self.stage, self.config, self.inputs, digests])

    def require_input(self, name: str, parent: "Artifact") -> None:
        """Check that this artifact was made from `parent`.

        Raises:
            UserError: it was made from another version of that input.
        """
        if self.inputs.get(name) != parent.fingerprint:
            raise UserError(
                f"{self.uri} was made from other {name} than {parent.uri} holds now: "
                "delete it and make it again, or give another --out"
            )

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of data files that begin with a prefix, sorted."""
        return sorted(name for name in self.files if name.startswith(prefix))

    def path(self, name: str) -> str:
        """Return the URI of a file."""
        return join(self.uri, name)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return read_table(self.path(name), columns)

    def read_tables(self, prefix: str = "", columns: list[str] | None = None) -> pa.Table:
        """Read the tables whose names begin with a prefix, concatenated in order of their names.

        Raises:
            UserError: there is no such table.
        """
        names = [name for name in self.names(prefix) if name.endswith(".parquet")]
        if not names:
            raise UserError(f"{self.uri} has no file under {prefix!r}; it holds {self.names()}")
        return pa.concat_tables([self.read_table(name, columns) for name in names])


def read_manifest(uri: str) -> dict[str, Any] | None:
    """Read the manifest of a folder; None if there is none."""
    fs, path = open_uri(join(uri, MANIFEST))
    if fs.get_file_info(path).type == pafs.FileType.NotFound:
        return None
    try:
        with fs.open_input_stream(path) as stream:
            manifest = json.loads(stream.read())
        keys = ("stage", "done", "config", "inputs", "counts", "files")
        return {key: manifest[key] for key in keys}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{join(uri, MANIFEST)} is not a manifest ({error!r})") from None
