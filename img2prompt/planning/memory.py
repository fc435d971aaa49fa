"""What grows with the rows in one process, in bytes a row: the limits of the driver and workers.

The numbers follow from the arrays that the modules hold; their docstrings say so. Tests measure
those of the hash tables (`tests/data/test_hashed.py`).
"""

from dataclasses import dataclass

from img2prompt.model.towers.base import TowerShape


@dataclass(frozen=True)
class Growth:
    """Memory of one step that grows with its rows."""

    step: str
    unit: str
    """`picture` or `prompt`."""
    bytes: float
    """Bytes for each."""
    cause: str

    def total(self, pictures: float, prompts: float) -> float:
        """Return the bytes for so many pictures and prompts."""
        return self.bytes * (pictures if self.unit == "picture" else prompts)


def growth(shape: TowerShape) -> list[Growth]:
    """Return each step whose memory grows with the rows, in the chain's order."""
    return [
        Growth("index", "picture", 24, "hashes of ids, three times while they are merged"),
        Growth("clean", "picture", 48, "hashes of ids and prompts, three times while merged"),
        Growth("targets", "prompt", 300, "the distinct prompts and their counts"),
        Growth("group", "prompt", 4 * 1536 + 6500, "vectors, and the report of leaks"),
        Growth("shard", "prompt", 1536, "vectors of all prompts"),
        Growth("shard", "picture", 16, "digests of pictures"),
        Growth("probe (AdamW)", "picture", 4 * shape.width + 1536, "features and targets"),
    ]
