"""Which pictures are made, from which seeds, in which file: pure functions of prompts and config.

The first picture of every prompt comes before the second of any, so that a run which is stopped
has pictures of as many prompts as possible.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from img2prompt.config.generate import GenerateConfig
from img2prompt.data.shards import read_rows


@dataclass(frozen=True)
class PictureRequest:
    """One picture to make."""

    prompt_id: str
    prompt: str
    number: int
    """Which picture of its prompt, from 0."""
    seed: int
    """Seed of its noise, 0 to 2**32 - 1: the range that programs for Stable Diffusion accept."""

    @property
    def id(self) -> str:
        return f"{self.prompt_id}-{self.number:03d}"


def seed_of(run_seed: int, prompt_id: str, number: int) -> int:
    """Return a picture's seed, which depends on nothing else.

    With one seed for all prompts, pictures would share their composition (a mistake that cost the
    2nd place of the competition much of its score, by its own account).
    """
    text = f"{run_seed} {prompt_id} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Plan:
    """The pictures of a run, numbered from 0, in shards of equal size (the last may be shorter)."""

    prompts: int
    pictures_per_prompt: int
    pictures_per_shard: int

    @classmethod
    def of(cls, config: GenerateConfig, prompts: int) -> "Plan":
        return cls(prompts, config.pictures_per_prompt, config.pictures_per_shard)

    @property
    def pictures(self) -> int:
        return self.prompts * self.pictures_per_prompt

    @property
    def shards(self) -> int:
        return -(-self.pictures // self.pictures_per_shard)

    def size(self, shard: int) -> int:
        """Return the number of pictures in a shard."""
        start = shard * self.pictures_per_shard
        return min(self.pictures_per_shard, self.pictures - start)

    def spans(self, shard: int) -> Iterator[tuple[int, int, int]]:
        """Yield the prompts of a shard: picture number, first row and row after the last."""
        picture = shard * self.pictures_per_shard
        stop = picture + self.size(shard)
        while picture < stop:
            number, row = divmod(picture, self.prompts)
            rows = min(self.prompts - row, stop - picture)
            yield number, row, row + rows
            picture += rows


def read_requests(uri: str, plan: Plan, shard: int, run_seed: int) -> list[PictureRequest]:
    """Return the pictures of a shard, given the file of all prompts, of which little is read."""
    requests = []
    for number, start, stop in plan.spans(shard):
        for row in read_rows(uri, start, stop, ["prompt_id", "prompt"]).to_pylist():
            seed = seed_of(run_seed, row["prompt_id"], number)
            requests.append(PictureRequest(row["prompt_id"], row["prompt"], number, seed))
    return requests
