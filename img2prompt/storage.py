"""Files on any filesystem that pyarrow supports: a local disk, `s3://`, `gs://`.

A written file appears whole or not at all: on a local disk it is written under another name and
then renamed; object stores publish an object when it is closed.
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
"""Environment variable with the URL of another S3 service than Amazon's (MinIO, R2, Ceph); the AWS
tools read it too."""

ASIDE = ".aside"
"""Suffix of files that are being written; a killed writer leaves one behind."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, a full quota, and a file above the process's size limit."""


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow filesystem of a local path or URI (`s3://`, `gs://`), and the path in it.

    S3 is the service at AWS_ENDPOINT_URL when that is set; pyarrow does not read it by itself.

    Raises:
        UserError: the URI has options, or a scheme that pyarrow does not support.
    """
    if "://" in uri and "?" in uri and not uri.startswith("fsspec+"):
        raise UserError(
            f"{uri} has options after '?', which paths inside it would lose; set {ENDPOINT} for "
            "another S3 than Amazon's, and write a '?' in a name as %3F"
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
    """Return the URI options for another S3 service than Amazon's."""
    endpoint = os.environ.get(ENDPOINT, "")
    if not uri.startswith("s3://") or not endpoint:
        return ""
    scheme, _, host = endpoint.rstrip("/").rpartition("://")
    return f"?scheme={scheme or 'https'}&endpoint_override={host}"


def join(uri: str, *names: str) -> str:
    """Return the path of a file or folder inside a folder, for local paths and URIs alike."""
    return posixpath.join(uri, *names)


def absolute(uri: str) -> str:
    """Return a local path as an absolute one, which all processes of a machine share.

    A URI is returned as it is.
    """
    return uri if "://" in uri else str(Path(uri).absolute())


def is_local(uri: str) -> bool:
    """Return True for a folder of a disk, as opposed to an object store."""
    return isinstance(open_uri(uri)[0], pafs.LocalFileSystem)


def exists(uri: str) -> bool:
    fs, path = open_uri(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def read_bytes(uri: str) -> bytes:
    fs, path = open_uri(uri)
    with fs.open_input_stream(path) as stream:
        return stream.read()


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file."""
    fs, path = open_uri(uri)
    return pq.read_table(path, columns=columns, filesystem=fs, partitioning=None)


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file so that a reader sees all of it or nothing.

    When two processes write it at once, the last one's file remains, whole. That happens when Ray
    restarts a task because a node could not be reached, and the first task is still running.

    Raises:
        UserError: the disk or the quota is full.
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
        raise _full_disk(uri, data, error) or error from None
    finally:
        if local:
            Path(aside).unlink(missing_ok=True)


def _full_disk(uri: str, data: bytes | pa.Buffer, error: OSError) -> UserError | None:
    """Return the message of a full disk or quota; None for any other error."""
    if error.errno not in FULL:
        return None
    size = len(data) if isinstance(data, bytes) else data.size
    return UserError(
        f"{uri}: no room for {size} bytes ({error}). Free space and run the same command again; it "
        "keeps the finished files"
    )


def create_bytes(uri: str, data: bytes) -> bool:
    """Write a small file on a local disk unless it exists; return whether this call wrote it.

    Of several processes that call this at once, one gets True. A reader may see part of the file.

    Raises:
        UserError: the disk or the quota is full.
    """
    path = Path(open_uri(uri)[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _full_disk(uri, data, error) or error from None
    return True


def delete_file(uri: str) -> None:
    """Delete a file, if it exists."""
    fs, path = open_uri(uri)
    if fs.get_file_info(path).type == pafs.FileType.File:
        fs.delete_file(path)


def delete_folder(uri: str) -> None:
    """Delete a folder and its contents, if it exists."""
    fs, path = open_uri(uri)
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        fs.delete_dir(path)
