import hashlib
import io
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from img2prompt.data.scenes import vocabulary
from img2prompt.data.scenes.backgrounds import BACKGROUNDS
from img2prompt.data.scenes.compose import Scene, Subject, compose
from img2prompt.data.scenes.draw import _charmap, _glyph, _typeface, draw, render
from img2prompt.data.scenes.styles import STYLES

REPO = Path(__file__).parents[3]


def picture(scene: Scene, seed: int = 0, size: int = 32) -> np.ndarray:
    return np.asarray(render(scene, np.random.default_rng(seed), size))


def digest(world: str, seed: int, number: int, size: int = 48) -> str:
    data, kind = draw(compose(world, seed, number), np.random.default_rng([seed, number]), size)
    return kind + hashlib.sha256(data).hexdigest()


def test_same_world_seed_and_number_give_the_same_bytes() -> None:
    keys = [(world, 0, number) for world in ("tower", "demo") for number in range(12)]
    first = {key: digest(*key) for key in keys}
    assert {key: digest(*key) for key in reversed(keys)} == first
    assert len(set(first.values())) == len(keys)


def test_another_process_gives_the_same_bytes() -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(REPO)!r}, {str(Path(__file__).parent)!r}]; "
        "from test_draw import digest; print([digest('demo', 3, n) for n in range(6)])"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert found == str([digest("demo", 3, number) for number in range(6)])


def test_all_formats_occur_and_are_what_they_are_called() -> None:
    scene = compose("demo", 0, 0)
    kinds = []
    for seed in range(30):
        data, kind = draw(scene, np.random.default_rng(seed), 32)
        image = Image.open(io.BytesIO(data))
        assert image.format == kind.upper()
        assert (image.size, image.mode) == ((32, 32), "RGB")
        kinds.append(kind)
    assert {kind: kinds.count(kind) >= 5 for kind in set(kinds)} == {
        "png": True,
        "jpeg": True,
        "webp": True,
    }


def test_all_subjects_have_a_glyph_of_their_own() -> None:
    inks = {}
    for name, glyph in vocabulary.subjects().items():
        font, _, entry = glyph.rpartition(":")
        code = int(_charmap(font or "mdi")[entry], 16)
        face = _typeface(font or "mdi", 40)
        absent = face.getmask(chr(0x10FFFE))  # a code point that no font may use
        assert bytes(face.getmask(chr(code))) != bytes(absent), name
        ink = np.asarray(_glyph(glyph, 40))
        assert 0.05 < (ink > 127).mean() < 0.99, name
        assert not ink[[0, -1]].max() > 200, name  # nothing is cut off
        inks[name] = ink.tobytes()
    assert len(set(inks.values())) == len(inks)
    assert len(inks) > 150


def test_all_styles_draw_on_all_backgrounds() -> None:
    assert STYLES.keys() == vocabulary.STYLES.keys()
    assert BACKGROUNDS.keys() == vocabulary.BACKGROUNDS.keys()
    drawn = {}
    for background, style in product(BACKGROUNDS, STYLES):
        subject = Subject("cat", "red", "", 1)
        drawn[background, style] = picture(Scene(subject, background, style))
    assert len(drawn) == len(BACKGROUNDS) * len(STYLES)
    assert all(image.shape == (32, 32, 3) and image.std() > 5 for image in drawn.values())
    means = {key: image.mean(axis=(0, 1)) for key, image in drawn.items()}
    assert np.ptp(list(means.values()), axis=0).min() > 100
    assert len({image.tobytes() for image in drawn.values()}) == len(drawn)


@pytest.mark.parametrize("size", [32, 65, 200])
def test_all_sizes_are_drawn(size: int) -> None:
    subject = Subject("cat", "red")
    for style in STYLES:
        assert picture(Scene(subject, "night", style), size=size).shape == (size, size, 3)


def share_of(image: np.ndarray, colour: str) -> float:
    """Share of pixels that have about this colour."""
    away = image.astype(float) - vocabulary.COLOURS[colour]
    return float((np.linalg.norm(away, axis=-1) < 45).mean())


@pytest.mark.parametrize("colour", vocabulary.COLOURS)
def test_a_subject_has_its_colour(colour: str) -> None:
    other = "blue" if colour == "red" else "red"
    there = share_of(picture(Scene(Subject("heart", colour, "huge"), "rain", "flat"), 1), colour)
    absent = share_of(picture(Scene(Subject("heart", other, "huge"), "rain", "flat"), 1), colour)
    assert there > absent + 0.15


def covered(**changes) -> np.ndarray:
    """Where (128, 128) a red subject is seen before a blue-grey background."""
    subject = Subject("heart", "red", changes.pop("size", ""), changes.pop("count", 1))
    image = picture(Scene(subject, "rain", "flat", **changes), 2, 128).astype(float)
    return (image[..., 0] - image[..., 1] > 70) & (image[..., 0] - image[..., 2] > 70)


def test_sizes_counts_and_arrangements_are_seen() -> None:
    areas = [covered(size=size).mean() for size in ("tiny", "", "huge")]
    assert areas[0] * 1.5 < areas[1] < areas[2] / 1.5
    row, column = covered(count=3, arrangement="row"), covered(count=3, arrangement="column")
    assert np.ptp(np.nonzero(row)[1]) > 90 > 70 > np.ptp(np.nonzero(row)[0])
    assert np.ptp(np.nonzero(column)[0]) > 90 > 70 > np.ptp(np.nonzero(column)[1])
    filled = [covered(count=n, arrangement="scattered").mean() for n in (2, 3, 4)]
    assert filled == sorted(filled)
    assert filled[2] > 1.7 * filled[0]


@pytest.mark.parametrize("relation", vocabulary.RELATIONS)
def test_relations_are_seen(relation: str) -> None:
    one, two = Subject("heart", "red"), Subject("heart", "yellow")
    image = picture(Scene(one, "rain", "flat", other=two, relation=relation), 3, 96).astype(float)
    red = (image[..., 0] > 150) & (image[..., 1] < 110) & (image[..., 2] < 110)
    yellow = (image[..., 0] > 180) & (image[..., 1] > 160) & (image[..., 2] < 130)
    (red_y, red_x), (yellow_y, yellow_x) = (np.argwhere(m).mean(axis=0) for m in (red, yellow))
    if relation == "beside":
        assert red_x < yellow_x - 20
        assert abs(red_y - yellow_y) < 15
    elif relation == "above":
        assert red_y < yellow_y - 20
        assert abs(red_x - yellow_x) < 15
    else:  # in front of: it covers part of the other, larger one
        assert red.any()
        assert np.hypot(red_x - yellow_x, red_y - yellow_y) < 45


def test_the_first_subject_is_in_front() -> None:
    one, two = Subject("heart", "red", "huge"), Subject("heart", "yellow", "huge")
    scene = Scene(one, "rain", "flat", other=two, relation="inside")
    image = picture(scene, 4, 96).astype(float)
    red = (image[..., 0] > 150) & (image[..., 1] < 110) & (image[..., 2] < 110)
    alone = picture(Scene(one, "rain", "flat"), 4, 96).astype(float)
    whole = (alone[..., 0] > 150) & (alone[..., 1] < 110) & (alone[..., 2] < 110)
    assert red.sum() > 0.4 * whole.sum()
