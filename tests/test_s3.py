"""Sources, artifacts and checkpoints in a bucket of moto, an S3 server on this machine."""

import io
import json
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace

import boto3
import numpy as np
import pyarrow as pa
import pytest
import torch
from moto.server import ThreadedMotoServer

from img2prompt import lease
from img2prompt.artifact import MANIFEST, Artifact
from img2prompt.config.prepare import ShardConfig
from img2prompt.config.sources import PictureSource
from img2prompt.data import images
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.sources.rows import Rejected
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.holder import Holder, this_process
from img2prompt.lease import LEASE
from img2prompt.storage import ENDPOINT, delete_folder, exists, join, write_bytes
from img2prompt.train.checkpoint import Checkpoint, CheckpointStore, EngineState, Position

BUCKET = "s3://bucket"
PROMPTS = {"red cat.png": "a red cat", "dog#1.png": "a dog"}
PNG = images.encode(np.zeros((8, 8, 3), np.uint8), "png")


@pytest.fixture(scope="module", autouse=True)
def bucket() -> Iterator[str]:
    """A bucket with a table of two pictures, and with a zip of them and their prompts."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENDPOINT, f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "nobody")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="bucket")
        for key, data in contents().items():
            client.put_object(Bucket="bucket", Key=key, Body=data)
        yield BUCKET
    server.stop()


def contents() -> dict[str, bytes]:
    lines = ["file,prompt", *(f"{n},{p}" for n, p in PROMPTS.items())]
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, prompt in PROMPTS.items():
            archive.writestr(f"a/{name}", PNG)
            archive.writestr(f"a/{name.removesuffix('.png')}.txt", prompt)
    files = {f"table/{name}": PNG for name in PROMPTS}
    return files | {"table/index.csv": "\n".join(lines).encode(), "zip/a.zip": zipped.getvalue()}


def test_pictures_of_a_table_are_listed_and_read() -> None:
    source = PictureSource(path=f"{BUCKET}/table/index.csv", name="table")
    rows = list(list_rows(source))
    assert not any(isinstance(row, Rejected) for row in rows)
    assert [row["prompt"] for row in rows] == list(PROMPTS.values())
    places = [(row["uri"], row["member"]) for row in rows]
    assert list(read_pictures(places)) == [PNG, PNG]


def test_members_of_an_archive_are_read_in_place(bucket: str) -> None:
    places = [(f"{bucket}/zip/a.zip", f"a/{name}") for name in PROMPTS]
    places.append((f"{bucket}/zip/gone.zip", "a"))
    *pictures, missing = read_pictures(places)
    assert pictures == [PNG, PNG]
    assert isinstance(missing, FileNotFoundError)


def test_a_killed_stage_resumes_and_is_skipped_when_done(bucket: str) -> None:
    folder, config = join(bucket, "out", "shards"), ShardConfig()
    table = pa.table({"id": ["a", "b"]})
    Draft.open(folder, "shards", config, {}).write_table("train/0.parquet", table)
    draft = Draft.open(folder, "shards", config, {})
    assert list(draft.receipts()) == ["train/0.parquet"]
    draft.publish(rows=2)
    assert Artifact.load(folder, "shards").read_table("train/0.parquet").equals(table)
    assert Draft.open(folder, "shards", config, {}).finished() is not None
    with pytest.raises(UserError, match="size"):
        Draft.open(folder, "shards", config.replace({"size": 64}), {})
    delete_folder(folder)
    assert not exists(join(folder, MANIFEST))


def test_a_folder_in_a_bucket_is_held_by_one_job(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "DEAD_S", 0.5)
    folder = join(bucket, "held")
    write_bytes(join(folder, LEASE), json.dumps(asdict(running_process("other"))).encode())
    with pytest.raises(UserError, match="s3://bucket/held is being written by another job"):
        Draft.open(folder, "shards", ShardConfig(), {})
    node = replace(running_process("other"), machine="another", renewed=time.time())
    write_bytes(join(folder, LEASE), json.dumps(asdict(node)).encode())
    draft = Draft.open(folder, "shards", ShardConfig(), {})
    assert exists(join(folder, LEASE))
    draft.publish()
    assert not exists(join(folder, LEASE))


def running_process(token: str) -> Holder:
    return replace(this_process(), token=token, renewed=time.time())


def test_a_checkpoint_is_read_back_and_a_partial_one_is_ignored(bucket: str) -> None:
    store = CheckpointStore(join(bucket, "checkpoints"))
    write_bytes(join(store.uri, Position(epoch=9).name, "model.safetensors"), b"half")
    assert store.newest() is None
    learned = {"head.weight": torch.arange(6.0)}
    store.write(Checkpoint(Position(epoch=1), EngineState(learned, {}, 3, {"last_epoch": 3})))
    newest = store.newest()
    assert newest is not None
    assert newest.position == Position(epoch=1)
    assert torch.equal(newest.engine.model["head.weight"], learned["head.weight"])


def test_the_error_for_a_missing_bucket_names_it() -> None:
    with pytest.raises((OSError, UserError), match="absent"):
        write_bytes("s3://absent/x", b"")
