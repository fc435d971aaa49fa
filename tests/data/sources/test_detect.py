import pytest
from source_locations import encoded

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources.catalogue import identity
from img2prompt.data.sources.detect import detect, resolve
from img2prompt.errors import UserError

LAYOUTS = {
    "csv": [
        ["list.csv"],
        ["pictures.csv.gz"],
        ["a.png", "b.png", "list.csv"],
        ["metadata.csv", "train/", "train/a.png"],
    ],
    "jsonl": [["list.jsonl"], ["0001.png", "metadata.jsonl"], ["images/", "metadata.jsonl"]],
    "kaggle": [
        ["images/", "prompts.csv", "images/20057f34d.png"],
        ["images/", "prompts.csv", "sample_submission.csv", "images/2005.png"],
    ],
    "sidecar": [["a.png", "a.txt"], ["in/", "in/a.jpg", "in/a.txt", "in/b.jpg"]],
    "metadata": [["a.png"], ["2024-01-01/", "2024-01-01/00001-5.png", "notes.txt"]],
    "webdataset": [
        ["00000.tar"],
        ["00000.tar", "00000.parquet", "00000_stats.json", "00001.tar", "00001.parquet"],
        ["train/", "train/00000.tar"],
    ],
    "parquet": [
        ["a.parquet"],
        ["README.md", "data/", "data/train-00000-of-00002.parquet"],
    ],
    "diffusiondb": [
        ["part-000001.zip"],
        ["images/", "metadata.parquet", "images/part-000001.zip"],
        ["diffusiondb-large-part-1/", "diffusiondb-large-part-1/part-000001/"],
        ["part-000001/", "part-000001/a.png", "part-000001/part-000001.json"],
        ["0a8d.webp", "part-000001.json"],
    ],
}


@pytest.mark.parametrize(
    ("form", "names"), [(form, names) for form, layouts in LAYOUTS.items() for names in layouts]
)
def test_every_layout_is_detected(form: str, names: list[str]) -> None:
    assert detect("/data", names).name == form


@pytest.mark.parametrize(
    ("names", "could"),
    [
        (["a.png", "a.txt", "list.csv"], "csv or sidecar"),
        (["list.csv", "list.jsonl"], "csv or jsonl"),
        (["a.tar", "a.png"], "metadata or webdataset"),
        (["a.parquet", "list.csv"], "csv or parquet"),
        (["part-000001.zip", "other.parquet"], "parquet or diffusiondb"),
    ],
)
def test_several_formats_are_not_guessed_between(names: list[str], could: str) -> None:
    with pytest.raises(UserError, match=f"/data could be {could}. It contains {names[0]}") as error:
        detect("/data", names)
    assert "--sources.N.format FORMAT" in str(error.value)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    "names", [[], ["notes.txt"], ["a.zip"], ["metadata.parquet"], [f"{n}.bin" for n in range(99)]]
)
def test_an_unknown_layout_lists_the_known_formats(names: list[str]) -> None:
    with pytest.raises(UserError, match="fits no known format") as error:
        detect("/data", names)
    for form in LAYOUTS:
        assert f"\n  {form}: " in str(error.value)
    assert len(str(error.value)) < 2000


def test_the_format_is_detected_from_names(location, caplog) -> None:
    location.write("side/a.png", encoded())
    location.write("side/a.txt", b"a cat")
    path = f"{location.root}/side"
    with caplog.at_level("INFO"):
        found = resolve(PictureSource(path=f"{path}/", name="mine"))
    assert (found.format, found.path) == ("sidecar", path)
    assert "source mine" in caplog.text
    assert "a.txt beside a.png" in caplog.text
    assert resolve(PictureSource(path=path, format="metadata")).format == "metadata"
    for form in ("auto", "parquet"):
        with pytest.raises(UserError, match=r"gone does not exist: .* source 'mine'"):
            resolve(PictureSource(path=f"{path}/gone", name="mine", format=form))


def test_identity_follows_the_content(location) -> None:
    location.write("side/a.png", encoded())
    location.write("side/a.txt", b"a cat")
    source = PictureSource(path=f"{location.root}/side")
    before = identity(source)
    assert identity(source) == before
    location.write("side/a.txt", b"a doggy")
    after = identity(source)
    assert after != before
    location.write("side/b.txt", b"")
    assert identity(source) not in (before, after)
    location.write("one.tar", b"12345")
    tar = PictureSource(path=f"{location.root}/one.tar")
    before = identity(tar)
    location.write("one.tar", b"123456")
    assert identity(tar) != before


def test_an_unknown_scheme_is_a_user_error() -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        resolve(PictureSource(path="nowhere://bucket/set"))


def test_a_path_that_is_not_utf_8_is_a_user_error(tmp_path) -> None:
    strange = tmp_path.joinpath(b"caf\xe9".decode("utf-8", "surrogateescape"))
    strange.mkdir()
    with pytest.raises(UserError, match=r"caf\\\\udce9', which is not UTF-8: rename it"):
        resolve(PictureSource(path=str(strange)))
