"""A run: its files, limits and resumption, and equal pictures however they are made."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from img2prompt.artifact import Artifact
from img2prompt.config.generate import GenerateConfig
from img2prompt.config.prepare import FeaturesConfig, GroupConfig, PrepareConfig, ShardConfig
from img2prompt.config.sources import PictureSource
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import EngineConfig, OptimConfig, TrainConfig
from img2prompt.data import images
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.reader import read_pictures
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.generate import actors
from img2prompt.generate import run as generate
from img2prompt.generate.estimate import Rate, Usage, describe
from img2prompt.generate.plan import Plan, seed_of
from img2prompt.generate.sheet import SHEET
from img2prompt.prepare import features
from img2prompt.prepare import run as prepare
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import GeneratedFolder, Stage

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pictures in this process, unless a test is marked `ray`, also beside a cluster."""
    if not request.node.get_closest_marker("ray"):
        monkeypatch.setattr("ray.is_initialized", lambda: False)


def rows_by_id(generated: Artifact) -> dict[str, dict]:
    return {row["id"]: row for row in generated.read_tables("pictures/").to_pylist()}


def test_a_run_writes_pictures_with_their_settings(config: GenerateConfig, tmp_path: Path) -> None:
    generated = generate.run(config, str(tmp_path / "out"))
    assert generated.counts["pictures"] == 10
    assert generated.counts["prompts"] == 5
    assert generated.counts["rejected"] == {}
    assert generated.names("pictures/") == [f"pictures/00000{n}.parquet" for n in range(3)]
    rows = rows_by_id(generated)
    assert len(rows) == 10
    for row in rows.values():
        assert row["id"] == f"{row['prompt_id']}-{row['number']:03d}"
        assert row["seed"] == seed_of(0, row["prompt_id"], row["number"])
        assert (row["step"], row["cfg"], row["sampler"]) == (2, 5.0, "ddim")
        assert (row["width"], row["height"], row["image_nsfw"]) == (32, 32, None)
        assert row["generator"] == f"StableDiffusionPipeline {generated.inputs['weights']}"
    pixels = {name: images.decode(row["image"]["bytes"]) for name, row in rows.items()}
    assert len({picture.tobytes() for picture in pixels.values()}) == 10
    page = (tmp_path / "out" / SHEET).read_text()
    assert "3 of 10 generated pictures" in page
    assert page.count("data:image/jpeg") == 3
    assert len(page) < 100_000  # without plotly.js


def test_pictures_are_a_source_without_conversion(config: GenerateConfig, tmp_path: Path) -> None:
    generated = generate.run(config, str(tmp_path / "out"))
    expected = generated.read_tables("pictures/").to_pylist()
    source = PictureSource(path=GeneratedFolder(generated.uri).pictures)
    rows = [row for row in list_rows(source) if isinstance(row, dict)]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in expected]
    for row, made in zip(rows, expected, strict=True):
        assert (row["seed"], row["steps"], row["cfg"]) == (made["seed"], 2, 5.0)
        assert (row["sampler"], row["generator"]) == ("ddim", made["generator"])
        assert (row["width"], row["height"]) == (32, 32)
    data = list(read_pictures((row["uri"], row["member"]) for row in rows))
    assert data == [row["image"]["bytes"] for row in expected]


def test_pictures_do_not_depend_on_order_shards_or_other_prompts(
    config: GenerateConfig, tmp_path: Path
) -> None:
    first = rows_by_id(generate.run(config, str(tmp_path / "first")))
    lines = Path(config.prompts).read_text().splitlines()
    other = tmp_path / "other.txt"
    other.write_text("\n".join([*lines[:1:-1], "a green boat"]))
    changes = {"prompts": str(other), "pictures_per_shard": 3, "pictures_per_prompt": 1}
    second = rows_by_id(generate.run(config.replace(changes), str(tmp_path / "second")))
    assert len(first.keys() & second.keys()) == 3
    for name in first.keys() & second.keys():
        assert second[name] == first[name]
    changed = config.replace({"seed": 1, "pictures_per_prompt": 1})
    third = rows_by_id(generate.run(changed, str(tmp_path / "third")))
    assert all(third[name]["image"] != first[name]["image"] for name in third)


def test_a_stopped_run_resumes_with_the_missing_shards(
    config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate.run(config, str(tmp_path / "whole"))
    made: list[int] = []
    make = actors.ShardJob.make

    def stopped(job: actors.ShardJob, shard: int):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(shard)
        return make(job, shard)

    monkeypatch.setattr(actors.ShardJob, "make", stopped)
    with pytest.raises(KeyboardInterrupt):
        generate.run(config, str(tmp_path / "stopped"))
    made[1:] = []
    monkeypatch.setattr(generate, "choose_prompts", None)  # prompts are not chosen again
    moved = config.replace({"prompts": str(Path(config.prompts).rename(tmp_path / "moved.txt"))})
    resumed = generate.run(moved, str(tmp_path / "stopped"))
    assert made == [0, 2]
    assert resumed.fingerprint == whole.fingerprint
    assert generate.run(moved, str(tmp_path / "whole")).fingerprint == whole.fingerprint
    with pytest.raises(UserError, match=r"config\.sampling\.steps: saved 2, requested 3"):
        generate.run(moved.replace({"sampling.steps": 3}), str(tmp_path / "whole"))


def test_a_limit_stops_a_run_before_it_or_on_the_way(
    config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(generate, "MEASURED_FROM", 2)
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"10 pictures would take .* GB; --max-gigabytes allows"):
        generate.run(config.replace({"max_gigabytes": 1e-6}), out)
    assert not (tmp_path / "out/pictures").exists()
    rate = json.loads((tmp_path / "out/rate.json").read_text())
    monkeypatch.setattr(generate, "expected", lambda rate, pictures: Usage())
    limit = 1.5 * 4 * rate["bytes"] / 1e9  # a shard has four pictures
    with pytest.raises(UserError, match=r"out stopped at .* higher limit resumes"):
        generate.run(config.replace({"max_gigabytes": limit}), out)
    assert len(list((tmp_path / "out/reports").iterdir())) == 2
    assert generate.run(config, out).counts["pictures"] == 10
    assert "10 pictures at " in caplog.text


def test_the_estimate_is_a_formula() -> None:
    line = describe(Rate(seconds=0.5, bytes=800_000), pictures=2_000_000, actors=8)
    assert line == (
        "2,000,000 pictures at 2 pictures/s a device (measured): 278 device-hours, 34.7 hours on "
        "8; 1.6e+03 GB at 800 kB a picture"
    )
    config = GenerateConfig(max_hours=10)
    assert Usage(seconds=36_000).excess(config) == ""
    assert Usage(seconds=39_600).excess(config) == "11 device-hours; --max-hours allows 10"


def test_unusable_pictures_are_rejected_rows(
    config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from img2prompt.generate.pictures import PicturePipeline

    forward = PicturePipeline._forward

    def damaged(pipeline: PicturePipeline, batch):
        pixels = forward(pipeline, batch).clone()
        for row, request in enumerate(batch):
            if "cat" in request.prompt or damage_all:
                pixels[row] = np.nan
        return pixels

    damage_all = False
    monkeypatch.setattr(PicturePipeline, "_forward", damaged)
    generated = generate.run(config, str(tmp_path / "out"))
    assert generated.counts["pictures"] == 8
    assert generated.counts["rejected"] == {"non-finite picture": 2}
    reasons = generated.read_tables("rejected/").to_pylist()
    assert all("are NaN or infinite; try --pipeline.dtype" in row["reason"] for row in reasons)
    damage_all = True
    with pytest.raises(UserError, match=r"no picture can be used: \{'non-finite picture': 10\}"):
        generate.run(config, str(tmp_path / "none"))


KILLED = """
import sys
from img2prompt.config.generate import GenerateConfig
from img2prompt.generate import run
run.run(GenerateConfig.from_json(open(sys.argv[1]).read()), sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_process_leaves_whole_shards(config: GenerateConfig, tmp_path: Path) -> None:
    config = config.replace({"pictures_per_prompt": 12})
    (tmp_path / "config.json").write_text(config.to_json())
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "config.json"), str(out)]
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not list((out / "reports").glob("*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list((out / "reports").glob("*.json"))) < 15
    resumed = generate.run(config, str(out))
    assert resumed.fingerprint == generate.run(config, str(tmp_path / "whole")).fingerprint


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_actors_make_the_pictures_of_one_process(
    cluster, config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "MEASURED_FROM", 2)
    one, two = (
        generate.run(config.replace({"workers": workers}), str(tmp_path / f"{workers}"))
        for workers in (1, 2)
    )
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    alone = generate.run(config, str(tmp_path / "alone"))
    assert one.fingerprint == two.fingerprint == alone.fingerprint


def test_an_actor_returns_a_users_error_as_text(config: GenerateConfig, tmp_path: Path) -> None:
    """Ray would wrap the error of an actor, and start the actor again."""
    folder = Path(shutil.copytree(config.weights, tmp_path / "copy"))
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"half a file")
    draft = Draft.open(str(tmp_path / "out"), Stage.GENERATED, config, {"weights": "0"})
    damaged = config.replace({"weights": str(folder)})
    job = actors.ShardJob(draft, damaged, Plan.of(damaged, 5), str(tmp_path / "prompts.parquet"))
    answer = actors._ShardActor(job)({"shard": np.array([0])})
    assert answer["report"] == [""]
    assert "unet cannot be loaded as UNet2DConditionModel" in answer["error"][0]
    assert isinstance(actors._rate(job), UserError)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generated_pictures_become_shards_features_and_a_probe(
    cluster, config: GenerateConfig, tiny_tower: str, tmp_path: Path
) -> None:
    things = ("cat", "violin", "lighthouse", "noodles", "planet", "sailor", "snail", "train")
    styles = ("in watercolour", "at night, photograph", "as pixel art", "in a thunderstorm")
    prompts = tmp_path / "things.txt"
    prompts.write_text("\n".join(f"a {thing} {style}" for thing in things for style in styles))
    changes = {"prompts": str(prompts), "pictures_per_prompt": 1, "pictures_per_shard": 16}
    generated = generate.run(config.replace(changes), str(tmp_path / "generated"))
    prepared = prepare.run(
        PrepareConfig(
            name="generated",
            sources=(PictureSource(path=GeneratedFolder(generated.uri).pictures),),
            group=GroupConfig(split_cosine=0.9, val_fraction=0.25, test_fraction=0.25),
            shard=ShardConfig(size=32, rows_per_shard=16, rows_per_group=8),
        ),
        str(tmp_path / "out"),
    )
    assert prepared.index.counts["rows"] == generated.counts["pictures"]
    tower = TowerConfig(weights=tiny_tower)
    embedded = features.run(
        FeaturesConfig(tower=tower, workers=1), prepared.shards, str(tmp_path / "features")
    )
    probe = TrainConfig(
        name="probe",
        tower=tower,
        engine=EngineConfig(kind="plain", workers=1),
        optim=OptimConfig(solver="ridge"),
    )
    inputs = TrainInputs(prepared.shards, embedded, groups=prepared.groups)
    trained = train.run(probe, inputs, str(tmp_path / "probe"))
    assert 0 < trained.counts["val_cosine"] < 1


def test_diffusers_is_imported_inside_functions() -> None:
    for path in (ROOT / "img2prompt/generate").glob("*.py"):
        for statement in ast.parse(path.read_text()).body:
            names = [name.name for name in getattr(statement, "names", ())]
            assert not any(n.startswith("diffusers") for n in [*names, _module(statement)]), path


def _module(statement: ast.stmt) -> str:
    return statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
