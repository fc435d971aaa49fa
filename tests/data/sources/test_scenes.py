import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from source_locations import read_all

from img2prompt.config.sources import SceneSource
from img2prompt.data.scenes.compose import compose
from img2prompt.data.sources.catalogue import list_rows
from img2prompt.data.sources.rows import INDEX_SCHEMA
from img2prompt.data.sources.scenes import SCHEME, read_scene


def test_rows_are_index_rows_in_order() -> None:
    source = SceneSource(prompts=3, pictures_per_prompt=2, seed=4, size=40, name="mine")
    rows = list(list_rows(source))
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    assert pa.Table.from_pylist(rows).schema.names == INDEX_SCHEMA.names
    assert table["id"].to_pylist() == [f"mine/00000{n}-{copy}" for n in range(3) for copy in (0, 1)]
    assert set(table["source"].to_pylist()) == {"mine"}
    assert set(table["width"].to_pylist() + table["height"].to_pylist()) == {40}
    prompts = [compose("demo", 4, number).prompt for number in (0, 0, 1, 1, 2, 2)]
    assert table["prompt"].to_pylist() == prompts


def test_more_prompts_begin_with_the_same_rows() -> None:
    few, many = (list(list_rows(SceneSource(prompts=number))) for number in (5, 9))
    assert many[: len(few)] == few


@pytest.mark.parametrize("world", ["tower", "demo"])
def test_pictures_are_what_the_rows_say(world) -> None:
    rows = list(list_rows(SceneSource(world=world, prompts=6, pictures_per_prompt=2, size=48)))
    pictures = read_all(rows)
    assert read_all(rows[::-1]) == pictures[::-1]
    for row, data in zip(rows, pictures, strict=True):
        assert Image.open(io.BytesIO(data)).size == (row["width"], row["height"])
    assert len(set(pictures)) == 12  # two copies of a scene are two pictures


def test_world_seed_and_size_all_count() -> None:
    base = read_scene(f"{SCHEME}demo/0/32", "0/0")
    others = [
        ("demo/1/32", "0/0"),
        ("tower/0/32", "0/0"),
        ("demo/0/32", "1/0"),
        ("demo/0/32", "0/1"),
    ]
    assert base not in [read_scene(f"{SCHEME}{uri}", member) for uri, member in others]
    large = Image.open(io.BytesIO(read_scene(f"{SCHEME}demo/0/64", "0/0"))).convert("RGB")
    small = Image.open(io.BytesIO(base)).convert("RGB")
    assert (large.size, small.size) == ((64, 64), (32, 32))
    apart = np.asarray(large.resize((32, 32)), float) - np.asarray(small, float)
    assert np.abs(apart).mean() < 45  # the same scene, drawn finer


def test_a_source_costs_nothing_until_it_is_read() -> None:
    rows = list_rows(SceneSource(prompts=10**9))
    assert next(rows)["id"] == "scenes/000000-0"
