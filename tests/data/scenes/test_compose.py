from collections import Counter
from itertools import product

import pytest

from img2prompt.data.scenes import vocabulary
from img2prompt.data.scenes.compose import Scene, Subject, coloured_subjects, compose, world_of

WORLDS = ("tower", "demo")


def subjects_of(scene: Scene) -> list[Subject]:
    return [scene.subject, *([scene.other] if scene.other else [])]


def test_worlds_share_no_coloured_subject_and_leave_none_out() -> None:
    tower, demo = (set(coloured_subjects(world)) for world in WORLDS)
    assert not tower & demo
    assert tower | demo == set(product(vocabulary.subjects(), vocabulary.COLOURS))
    shared = set(vocabulary.subjects()) - vocabulary.demo_subjects()
    assert 0.45 < len(tower) / (len(shared) * len(vocabulary.COLOURS)) < 0.55
    assert {name for name, _ in tower} == shared
    assert {name for name, _ in demo} == set(vocabulary.subjects())
    for world, pairs in zip(WORLDS, (tower, demo), strict=True):
        assert {colour for _, colour in pairs} == set(vocabulary.COLOURS)
        assert all(world_of(name, colour) == world for name, colour in pairs)


@pytest.mark.parametrize("world", WORLDS)
def test_scenes_keep_to_their_world(world: str) -> None:
    scenes = [compose(world, seed, number) for seed in (0, 5) for number in range(400)]
    used = {(s.name, s.colour) for scene in scenes for s in subjects_of(scene)}
    assert len(used) > 300
    assert used <= set(coloured_subjects(world))


def test_a_scene_is_a_pure_function_of_world_seed_and_number() -> None:
    keys = list(product(WORLDS, range(3), range(20)))
    forwards = {key: compose(*key) for key in keys}
    assert {key: compose(*key) for key in reversed(keys)} == forwards
    assert len(set(forwards.values())) > len(keys) - 3


def test_the_tower_never_sees_the_styles_of_the_demo() -> None:
    seen = {compose("tower", 0, number).style for number in range(2000)}
    assert seen == set(vocabulary.STYLES) - set(vocabulary.DEMO_STYLES)


def test_scenes_are_unchanged() -> None:
    """The demo tower in this package was trained on them."""
    keys = [("tower", 0, 0), ("tower", 3, 59_999)]
    assert [compose(*key).prompt for key in keys] == [
        "a watercolor painting of two blue robots in a row in the rain",
        "a paper cutout of a huge yellow fan above a tiny red brain under a starry night sky",
    ]


def test_everything_in_the_vocabulary_occurs() -> None:
    scenes = [compose("demo", 1, number) for number in range(3000)]
    seen = {
        "style": Counter(scene.style for scene in scenes),
        "background": Counter(scene.background for scene in scenes),
        "relation": Counter(scene.relation for scene in scenes if scene.other),
        "arrangement": Counter(scene.arrangement for scene in scenes if scene.subject.count > 1),
        "count": Counter(scene.subject.count for scene in scenes),
        "size": Counter(scene.subject.size for scene in scenes if scene.subject.count == 1),
    }
    expected = {
        "style": vocabulary.STYLES,
        "background": vocabulary.BACKGROUNDS,
        "relation": vocabulary.RELATIONS,
        "arrangement": vocabulary.ARRANGEMENTS,
        "count": vocabulary.COUNTS,
        "size": vocabulary.SIZES,
    }
    for field, counts in seen.items():
        assert set(counts) == set(expected[field]), field
        if field != "count":
            assert min(counts.values()) > 0.5 * sum(counts.values()) / len(counts), field


def test_only_a_single_subject_has_a_size_or_company() -> None:
    for number in range(500):
        scene = compose("tower", 2, number)
        assert scene.subject.count == 1 or (not scene.other and not scene.subject.size)
        assert scene.other is None or scene.other.count == 1


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        (Subject("cat", "red"), "a red cat"),
        (Subject("owl", "orange"), "an orange owl"),
        (Subject("owl", "orange", "tiny"), "a tiny orange owl"),
        (Subject("cat", "red", "", 2), "two red cats"),
        (Subject("sheep", "black", "", 4), "four black sheep"),
        (Subject("wine bottle", "green", "", 3), "three green wine bottles"),
    ],
)
def test_a_subject_in_words(subject: Subject, words: str) -> None:
    assert subject.words == words


def test_a_scene_in_words() -> None:
    one = Scene(Subject("cat", "red", "huge"), "desert", "pixel")
    assert one.prompt == "pixel art of a huge red cat in the desert"
    row = Scene(Subject("leaf", "blue", "", 3), "sunset", "flat", "column")
    assert row.prompt == (
        "a flat vector illustration of three blue leaves stacked in a column at sunset"
    )
    pair = Scene(
        Subject("dog", "pink"), "sea", "neon", other=Subject("axe", "grey"), relation="inside"
    )
    assert pair.prompt == "a glowing neon sign of a pink dog in front of a grey axe by the sea"


def test_no_plural_is_ill_formed() -> None:
    regular = set(vocabulary.subjects()) - set(vocabulary.PLURALS)
    sibilant = ("s", "x", "z", "ch", "sh")
    assert not {name for name in regular if name.endswith((*sibilant, "fe", "man"))}
    assert not {name for name in regular if name.endswith("y") and name[-2] not in "aeiou"}


def test_irregular_plurals_are_of_subjects() -> None:
    assert set(vocabulary.PLURALS) <= set(vocabulary.subjects())


def test_a_prompt_says_all_that_a_scene_shows() -> None:
    def shown(scene: Scene) -> tuple:
        arranged = scene.arrangement if scene.subject.count > 1 else ""
        related = scene.relation if scene.other else ""
        what = scene.subject, scene.other
        return *what, scene.background, scene.style, arranged, related

    by_prompt: dict[str, tuple] = {}
    for number in range(3000):
        scene = compose("demo", 4, number)
        assert by_prompt.setdefault(scene.prompt, shown(scene)) == shown(scene)
    assert len(by_prompt) > 2900
