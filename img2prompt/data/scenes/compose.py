"""Compose scenes: a scene and its prompt are a pure function of (world, seed, number).

The two worlds share no pair of subject and colour, and `demo` has some subjects and styles of its
own. So a tower that was trained on the world `tower` has to generalise in the world `demo`.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import numpy as np

from img2prompt.data.scenes import vocabulary

World = Literal["tower", "demo"]
T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A coloured subject, once or several times."""

    name: str
    colour: str
    size: str = ""
    count: int = 1

    @property
    def words(self) -> str:
        """Noun phrase, such as `a tiny red cat` or `three red cats`."""
        noun = self.name if self.count == 1 else vocabulary.plural(self.name)
        words = " ".join(filter(None, [self.size, self.colour, noun]))
        if self.count > 1:
            return f"{vocabulary.COUNTS[self.count]} {words}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Scene:
    """One subject, once or several times, or with a second one."""

    subject: Subject
    background: str
    style: str
    arrangement: str = "row"
    other: Subject | None = None
    relation: str = "beside"

    @property
    def prompt(self) -> str:
        """Prompt in the form `<style> of <subjects> <background>`."""
        words = self.subject.words
        if self.other:
            words = f"{words} {vocabulary.RELATIONS[self.relation]} {self.other.words}"
        elif self.subject.count > 1:
            words = f"{words} {vocabulary.ARRANGEMENTS[self.arrangement]}"
        styled = vocabulary.STYLES[self.style].format(words)
        return f"{styled} {vocabulary.BACKGROUNDS[self.background]}"


def world_of(name: str, colour: str) -> World:
    """Return the only world in which this subject has this colour."""
    if name in vocabulary.demo_subjects():
        return "demo"
    digest = hashlib.sha256(f"{name}/{colour}".encode()).digest()
    return "tower" if digest[0] % 2 else "demo"


@cache
def coloured_subjects(world: World) -> tuple[tuple[str, str], ...]:
    """Return all (subject, colour) pairs of a world."""
    names, colours = vocabulary.subjects(), vocabulary.COLOURS
    return tuple((n, c) for n in names for c in colours if world_of(n, c) == world)


def styles(world: World) -> list[str]:
    """Return the drawing styles of a world."""
    excluded = vocabulary.DEMO_STYLES if world == "tower" else ()
    return [style for style in vocabulary.STYLES if style not in excluded]


def compose(world: World, seed: int, number: int) -> Scene:
    """Return scene `number` of an endless sequence; scenes are independent of each other."""
    rng = np.random.default_rng([world == "demo", seed, number])
    subject = _subject(rng, world, counts=[1, 1, 1, 2, 3, 4])
    other = None
    if subject.count == 1 and rng.random() < 0.45:
        other = _subject(rng, world, counts=[1])
    return Scene(
        subject=subject,
        background=_pick(rng, list(vocabulary.BACKGROUNDS)),
        style=_pick(rng, styles(world)),
        arrangement=_pick(rng, list(vocabulary.ARRANGEMENTS)),
        other=other,
        relation=_pick(rng, list(vocabulary.RELATIONS)),
    )


def _subject(rng: np.random.Generator, world: World, counts: list[int]) -> Subject:
    name, colour = _pick(rng, coloured_subjects(world))
    count = _pick(rng, counts)
    sizes = list(vocabulary.SIZES) if count == 1 else [""]
    return Subject(name, colour, _pick(rng, sizes), count)


def _pick(rng: np.random.Generator, choices: list[T] | tuple[T, ...]) -> T:
    return choices[int(rng.integers(len(choices)))]
