import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from img2prompt import draft as draft_module
from img2prompt.artifact import Artifact
from img2prompt.config.base import Config
from img2prompt.config.prepare import FeaturesConfig, TargetsConfig
from img2prompt.draft import RECEIPTS, Draft
from img2prompt.errors import UserError
from img2prompt.storage import delete_folder, exists, join, open_uri, read_bytes, write_bytes

TABLE = pa.table({"id": ["a", "b", "c"], "number": [1, 2, 3]})


@pytest.fixture(params=["path", "file://", "fsspec+memory://"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same folder as a path, as a URI, and on a file system that is not local."""
    if request.param == "path":
        return str(tmp_path / "out")
    if request.param == "file://":
        return f"file://{tmp_path}/out"
    return f"fsspec+memory://{tmp_path.name}-{id(request)}/out"


def draft_of(
    uri: str, stage: str = "made", config: Config | None = None, source: str = "one"
) -> Draft:
    return Draft.open(uri, stage, config or TargetsConfig(), {"source": source})


def write_all(draft: Draft) -> None:
    draft.write_table("rows/a.parquet", TABLE)
    draft.write_table("rows/b.parquet", TABLE.slice(1))
    draft.write_bytes("model.bin", b"weights")


class Killed(BaseException):
    """Not caught by any code, as with SIGKILL."""


@contextmanager
def killed_at(name: str, ending: str = "") -> Iterator[None]:
    """Raise `Killed` when a function of the module is about to be called with such a URI."""
    function = getattr(draft_module, name)

    def dies(uri: str, *more: bytes) -> None:
        if uri.endswith(ending):
            raise Killed
        function(uri, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft_module, name, dies)
        with pytest.raises(Killed):
            yield


def test_a_published_folder_can_be_loaded(folder: str) -> None:
    draft = draft_of(folder)
    write_all(draft)
    made = draft.publish(rows=5)
    found = Artifact.load(folder, "made")
    assert found == made
    assert found.names() == ["model.bin", "rows/a.parquet", "rows/b.parquet"]
    assert found.names("rows/") == ["rows/a.parquet", "rows/b.parquet"]
    assert (found.counts, found.inputs) == ({"rows": 5}, {"source": "one"})
    assert TargetsConfig.from_json(json.dumps(found.config)) == TargetsConfig()
    assert found.read_tables("rows/").equals(pa.concat_tables([TABLE, TABLE.slice(1)]))
    assert found.read_table("rows/a.parquet", ["number"]).equals(TABLE.select(["number"]))
    assert read_bytes(found.path("model.bin")) == b"weights"
    assert TargetsConfig.from_json(read_bytes(join(folder, "config.json")).decode())
    assert json.loads(read_bytes(join(folder, "metrics.json"))) == {"rows": 5}


def test_receipts_prove_what_was_written(folder: str) -> None:
    draft = draft_of(folder)
    assert draft.receipts() == {}
    write_all(draft)
    receipts = draft.receipts()
    assert {name: receipt.rows for name, receipt in receipts.items()} == {
        "rows/a.parquet": 3,
        "rows/b.parquet": 2,
        "model.bin": 1,
    }
    for name, receipt in receipts.items():
        data = read_bytes(join(folder, name))
        assert receipt.digest == hashlib.sha256(data).hexdigest()[:16]
    assert draft.publish().files == receipts
    assert not exists(join(folder, RECEIPTS))


def test_row_groups_have_the_requested_size(folder: str) -> None:
    draft = draft_of(folder)
    draft.write_table("rows.parquet", TABLE, rows_per_group=2)
    fs, path = open_uri(join(folder, "rows.parquet"))
    with fs.open_input_file(path) as file:
        read = pq.ParquetFile(file)
        assert [read.metadata.row_group(n).num_rows for n in range(read.num_row_groups)] == [2, 1]
        assert read.metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_kill_between_file_and_receipt_leaves_the_file_unfinished(
    folder: str,
) -> None:
    draft = draft_of(folder)
    draft.write_table("rows/a.parquet", TABLE)
    with killed_at("write_bytes", "b.parquet.json"):
        draft.write_table("rows/b.parquet", TABLE)
    assert exists(join(folder, "rows/b.parquet"))
    again = draft_of(folder)
    assert again.finished() is None
    assert list(again.receipts()) == ["rows/a.parquet"]
    again.write_table("rows/b.parquet", TABLE.slice(2))
    assert again.publish().read_table("rows/b.parquet").equals(TABLE.slice(2))


def test_a_kill_before_the_end_leaves_the_folder_unfinished(
    folder: str,
) -> None:
    draft = draft_of(folder)
    write_all(draft)
    with killed_at("write_bytes", "manifest.json"):
        draft.publish()
    with pytest.raises(UserError, match="was not finished: run its made job again"):
        Artifact.load(folder, "made")
    again = draft_of(folder)
    assert again.finished() is None
    assert len(again.receipts()) == 3
    again.publish(rows=5)
    assert draft_of(folder).finished() == Artifact.load(folder, "made")


def test_a_kill_after_the_manifest_leaves_a_finished_folder(
    folder: str,
) -> None:
    draft = draft_of(folder)
    write_all(draft)
    with killed_at("delete_folder"):
        draft.publish()
    finished = draft_of(folder).finished()
    assert finished is not None
    assert exists(join(folder, "metrics.json"))
    assert finished.names() == ["model.bin", "rows/a.parquet", "rows/b.parquet"]


@pytest.mark.parametrize("ending", ["config.json", "manifest.json"])
def test_a_kill_at_the_start_allows_another_config(folder: str, ending: str) -> None:
    with killed_at("write_bytes", ending):
        draft_of(folder)
    other = TargetsConfig(encoder="another")
    assert draft_of(folder, config=other).publish().config == other.to_dict()
    assert json.loads(read_bytes(join(folder, "config.json"))) == other.to_dict()


FULL_DISK = """
import resource, signal, sys
from img2prompt.draft import Draft
from img2prompt.config.prepare import TargetsConfig
from img2prompt.errors import UserError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
draft = Draft.open(sys.argv[1], "targets", TargetsConfig(), {})
draft.write_bytes("small", b"x" * 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    draft.write_bytes("large", b"x" * 10_000)
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_a_user_error_and_leaves_no_partial_file(tmp_path: Path) -> None:
    """The process's limit on file sizes plays the full disk."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert "large: no room for 10000 bytes" in done.stdout, done.stderr
    assert "run the same command again" in done.stdout
    assert not list(tmp_path.rglob("*large*"))
    draft = Draft.open(str(tmp_path), "targets", TargetsConfig(), {})
    assert set(draft.receipts()) == {"small"}


def test_another_run_is_refused_with_all_differences(folder: str) -> None:
    config = FeaturesConfig()
    draft_of(folder, config=config).publish()
    changed = config.replace({"batch_size": 8, "tower.image_size": 96})
    with pytest.raises(UserError) as caught:
        draft_of(folder, stage="other", config=changed, source="two")
    assert str(caught.value).splitlines() == [
        f"{folder} holds another run. It differs in:",
        "  config.batch_size: saved 64, requested 8",
        "  config.tower.image_size: saved 0, requested 96",
        "  inputs.source: saved 'one', requested 'two'",
        "  stage: saved 'made', requested 'other'",
        "Give another --out or --name, or delete that folder to make it again.",
    ]


def test_added_and_removed_inputs_are_differences(folder: str) -> None:
    Draft.open(folder, "made", TargetsConfig(), {"a": "1", "b": "2"}).write_bytes("x", b"x")
    with pytest.raises(UserError) as caught:
        Draft.open(folder, "made", TargetsConfig(), {"b": "2", "c": "3"})
    assert "inputs.a: saved '1', requested None" in str(caught.value)
    assert "inputs.c: saved None, requested '3'" in str(caught.value)
    assert "inputs.b" not in str(caught.value)


def test_an_unfinished_folder_refuses_another_run_too(folder: str) -> None:
    draft_of(folder).write_bytes("model.bin", b"x")
    with pytest.raises(UserError, match=r"inputs\.source: saved 'one', requested 'two'"):
        draft_of(folder, source="two")
    assert list(draft_of(folder).receipts()) == ["model.bin"]


def test_a_folder_without_data_may_start_over_with_another_config(folder: str) -> None:
    draft_of(folder)
    write_bytes(join(folder, "rows.parquet.0123.aside"), b"of a killed writer")
    other = draft_of(folder, config=TargetsConfig(encoder="x"), source="two")
    assert json.loads(read_bytes(join(folder, "config.json"))) == {"encoder": "x"}
    assert other.publish().inputs == {"source": "two"}
    with pytest.raises(UserError, match="holds another run"):
        draft_of(folder)  # finished, though without files


def test_free_settings_may_change_and_are_not_part_of_the_artifact(folder: str) -> None:
    def opened(
        free: tuple[str, ...] = ("workers", "tower.weights", "tower.download"), **changes: object
    ) -> Draft:
        return Draft.open(folder, "made", FeaturesConfig().replace(changes), {}, free=free)

    opened(free=()).write_bytes("x", b"x")  # as if started by a version without free settings
    assert "x" in opened(workers=3, **{"tower.download": True}).receipts()
    with pytest.raises(UserError) as caught:
        opened(workers=3, **{"tower.image_size": 96})
    assert "workers" not in str(caught.value)
    assert "config.tower.image_size: saved 0, requested 96" in str(caught.value)
    made = opened(workers=5).publish()
    assert "workers" not in made.config
    assert set(made.config["tower"]) == {"beside", "image_size", "resize_positions"}
    assert opened(workers=7).finished() == made


def test_settings_that_were_added_since_count_as_their_defaults(folder: str) -> None:
    """A folder of an earlier version resumes, and is refused for values other than the defaults."""
    Draft.open(folder, "made", FeaturesConfig(), {}).write_bytes("x", b"x")
    manifest = json.loads(read_bytes(join(folder, "manifest.json")))
    del manifest["config"]["views"], manifest["config"]["tower"]["resize_positions"]
    write_bytes(join(folder, "manifest.json"), json.dumps(manifest).encode())
    assert "x" in Draft.open(folder, "made", FeaturesConfig(), {}).receipts()
    flipped = FeaturesConfig(views=("plain", "flip"))
    with pytest.raises(UserError, match=r"config\.views: saved \['plain'\], requested"):
        Draft.open(folder, "made", flipped, {})


def test_a_renewable_unfinished_folder_starts_over_with_other_inputs(
    folder: str,
) -> None:
    def opened(stage: str, source: str) -> Draft:
        return Draft.open(folder, stage, TargetsConfig(), {"source": source}, renewable=True)

    opened("made", "one").write_bytes("of-one.bin", b"x")
    assert "of-one.bin" in opened("made", "one").receipts()
    with pytest.raises(UserError, match="stage: saved 'made'"):
        opened("other", "one")
    second = opened("made", "two")
    second.write_bytes("of-two.bin", b"x")
    made = second.publish()
    assert (made.names(), made.inputs) == (["of-two.bin"], {"source": "two"})
    with pytest.raises(UserError, match="holds another run"):
        opened("made", "one")


def test_check_runs_before_the_folder_exists_and_not_when_it_is_finished(folder: str) -> None:
    def refuse() -> None:
        raise UserError("no room")

    def opened() -> Draft:
        return Draft.open(folder, "made", TargetsConfig(), {}, refuse)

    with pytest.raises(UserError, match="no room"):
        opened()
    assert not exists(folder)
    draft = Draft.open(folder, "made", TargetsConfig(), {})
    draft.write_bytes("x", b"x")
    with pytest.raises(UserError, match="no room"):
        opened()
    made = draft.publish()
    assert opened().finished() == made


def test_another_version_of_an_input_is_refused(tmp_path: Path) -> None:
    first, second = (draft_of(str(tmp_path / name), source=name) for name in ("one", "two"))
    parent, other = first.publish(), second.publish()
    inputs = {"parent": parent.fingerprint}
    child = Draft.open(str(tmp_path / "child"), "child", TargetsConfig(), inputs).publish()
    child.require_input("parent", parent)
    for name, found in [("parent", other), ("stranger", parent)]:
        with pytest.raises(UserError) as caught:
            child.require_input(name, found)
        assert f"{child.uri} was made from other {name} than {found.uri}" in str(caught.value)


def test_absent_unfinished_and_foreign_folders_have_different_errors(folder: str) -> None:
    with pytest.raises(UserError, match="holds no finished made: run the job that makes it"):
        Artifact.load(folder, "made")
    draft = draft_of(folder)
    with pytest.raises(UserError, match="was not finished"):
        Artifact.load(folder, "made")
    draft.publish()
    with pytest.raises(UserError, match="holds 'made', not 'shards'"):
        Artifact.load(folder, "shards")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'"x"', b"{}", b'{"stage": "made"}'])
def test_a_damaged_manifest_is_a_user_error(folder: str, text: bytes) -> None:
    write_bytes(join(folder, "manifest.json"), text)
    for read in (lambda: Artifact.load(folder, "made"), lambda: draft_of(folder)):
        with pytest.raises(UserError, match=r"manifest\.json is not a manifest"):
            read()


def test_a_prefix_without_files_is_a_user_error(folder: str) -> None:
    draft = draft_of(folder)
    write_all(draft)
    with pytest.raises(UserError, match=r"no file under 'val/'; it holds \['model.bin', 'rows/a"):
        draft.publish().read_tables("val/")


def fingerprint(
    uri: str, changes: Callable[[Draft], object] = lambda draft: None, **opening
) -> str:
    draft = draft_of(uri, **opening)
    write_all(draft)
    changes(draft)
    return draft.publish().fingerprint


def test_the_fingerprint_depends_on_data_stage_config_and_inputs(tmp_path: Path) -> None:
    numbers = iter(range(99))

    def of(changes: Callable[[Draft], object] = lambda draft: None, **opening) -> str:
        return fingerprint(str(tmp_path / str(next(numbers))), changes, **opening)

    prints = [
        of(),
        of(lambda draft: draft.write_table("rows/a.parquet", TABLE.slice(0, 2))),
        of(lambda draft: draft.write_bytes("model.bin", b"weightz")),
        of(lambda draft: draft.write_bytes("more.bin", b"")),
        of(stage="other"),
        of(config=TargetsConfig(encoder="x")),
        of(source="two"),
    ]
    assert len(set(prints)) == len(prints)


def test_the_fingerprint_does_not_depend_on_time_folder_or_reports(tmp_path: Path) -> None:
    first = fingerprint(str(tmp_path / "first"))
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert Artifact.load(str(tmp_path / "copy"), "made").fingerprint == first
    report = fingerprint(
        str(tmp_path / "report"), lambda draft: draft.write_bytes("metrics.json", b'{"seconds": 3}')
    )
    assert report == first
    backwards = draft_of(str(tmp_path / "backwards"))
    backwards.write_bytes("model.bin", b"weights")
    backwards.write_table("rows/b.parquet", TABLE.slice(1))
    backwards.write_table("rows/a.parquet", TABLE)
    assert backwards.publish(seconds=99).fingerprint == first


def test_drafts_and_artifacts_pickle(folder: str) -> None:
    draft = pickle.loads(pickle.dumps(draft_of(folder)))
    write_all(draft)
    made = draft.publish()
    assert pickle.loads(pickle.dumps(made)).fingerprint == made.fingerprint


def test_delete_folder(folder: str) -> None:
    draft = draft_of(folder)
    write_all(draft)
    delete_folder(folder)
    assert not exists(folder)
    delete_folder(folder)
    assert draft_of(folder, source="two").receipts() == {}
