"""Files on any filesystem that pyarrow knows: a local disk, `s3://`, `gs://`.

A file that is written appears whole or not at all: on a local disk it is written aside and renamed,
object stores publish an object when it is closed.
"""

import errno
import os
import posixpath
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from img2prompt.errors import UserError

ENDPOINT = "AWS_ENDPOINT_URL"
"""Variable that names another S3 than Amazon's (MinIO, R2, Ceph), as in Amazon's own tools."""

ASIDE = ".aside"
"""Ending of files that are being written; a killed writer leaves one."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a full quota, a file above the process's limit."""


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem behind a local path or URI (`s3://`, `gs://`), and the path in it.

    S3 is that of AWS_ENDPOINT_URL when that is set, which pyarrow does not look at by itself.
    """
    if "://" in uri and "?" in uri and not uri.startswith("fsspec+"):
        raise UserError(
            f"{uri} has options after '?', which what lies inside it would lose; name another S3 "
            f"than Amazon's in {ENDPOINT}, and write a '?' in a name as %3F"
        )
    if "://" in uri:
        try:
            return pafs.FileSystem.from_uri(uri + _endpoint(uri))
        except (ValueError, NotImplementedError) as error:
            raise UserError(
                f"{uri} cannot be opened ({error}); allowed: a local path, or a URI that pyarrow "
                "reads, such as s3://bucket/folder"
            ) from error
    return pafs.LocalFileSystem(), absolute(uri)


def _endpoint(uri: str) -> str:
    """What a URI needs to be looked for elsewhere than at Amazon."""
    endpoint = os.environ.get(ENDPOINT, "")
    if not uri.startswith("s3://") or not endpoint:
        return ""
    scheme, _, host = endpoint.rstrip("/").rpartition("://")
    return f"?scheme={scheme or 'https'}&endpoint_override={host}"


def join(uri: str, *names: str) -> str:
    """Path of something inside a folder, for local paths and URIs alike."""
    return posixpath.join(uri, *names)


def absolute(uri: str) -> str:
    """Return a local path as an absolute one, which all processes of a machine share.

    A URI is returned as it is.
    """
    return uri if "://" in uri else str(Path(uri).absolute())


def exists(uri: str) -> bool:
    fs, path = open_uri(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def read_bytes(uri: str) -> bytes:
    fs, path = open_uri(uri)
    with fs.open_input_stream(path) as stream:
        return stream.read()


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file as a table."""
    fs, path = open_uri(uri)
    return pq.read_table(path, columns=columns, filesystem=fs, partitioning=None)


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file so that a reader sees all of it or nothing; a full disk is a UserError.

    Of two writers at once (a task that was started again while the first one's node was only out of
    reach) the last one's file stays, whole.
    """
    fs, path = open_uri(uri)
    fs.create_dir(posixpath.dirname(path), recursive=True)
    local = isinstance(fs, pafs.LocalFileSystem)
    aside = f"{path}.{uuid.uuid4().hex[:8]}{ASIDE}" if local else path
    try:
        with fs.open_output_stream(aside) as stream:
            stream.write(data)
        if local:
            fs.move(aside, path)
    except OSError as error:
        if error.errno not in FULL:
            raise
        size = len(data) if isinstance(data, bytes) else data.size
        raise UserError(
            f"{uri}: no room for {size} bytes ({error}). Free space there and run the same command "
            "again: it goes on with what is finished"
        ) from error
    finally:
        if local:
            Path(aside).unlink(missing_ok=True)


def delete_file(uri: str) -> None:
    """Delete a file; an absent one is fine."""
    fs, path = open_uri(uri)
    if fs.get_file_info(path).type == pafs.FileType.File:
        fs.delete_file(path)


def delete_folder(uri: str) -> None:
    """Delete a folder with all that is in it; an absent one is fine."""
    fs, path = open_uri(uri)
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        fs.delete_dir(path)
