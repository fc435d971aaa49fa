"""One picture of each prompt an epoch.

Several pictures of a prompt, by other seeds of a generator, teach more than one, but in one epoch
they are nearly the same lesson. The 1st, 3rd and 5th place of Kaggle's "Stable Diffusion - Image to
Prompts" drew one of them in each epoch.
"""

import numpy as np

from img2prompt.artifact import Artifact
from img2prompt.data.shards import Batch
from img2prompt.train.batches import Rows, RowSubset

DRAW = 0x70726F6D707473
"""Makes the draws independent of the order of rows, which has the same seed and epoch."""


class OnePerPrompt:
    """Rows of which each epoch has one of each prompt; its length is the number of prompts."""

    def __init__(self, rows: Rows, prompts: np.ndarray, seed: int) -> None:
        """`prompts`: an int64 label of each row, equal for pictures of one prompt."""
        assert len(prompts) == len(rows)
        self._rows = rows
        self._seed = seed
        labels, self._prompts = np.unique(prompts, return_inverse=True)
        self._count = len(labels)
        self.group_sizes = self.of_epoch(0).group_sizes

    def __len__(self) -> int:
        return self._count

    def of_epoch(self, epoch: int) -> RowSubset:
        """Return the rows of an epoch: a function of seed and epoch alone."""
        draws = np.random.default_rng([self._seed, epoch, DRAW]).random(len(self._prompts))
        order = np.lexsort((draws, self._prompts))
        ends = np.flatnonzero(np.diff(self._prompts[order], append=-1))
        return RowSubset(self._rows, np.sort(order[ends]))

    def fetch(self, rows: np.ndarray) -> Batch:
        """Read rows of the first epoch."""
        return self.of_epoch(0).fetch(rows)


def rows_of_epoch(rows: Rows, epoch: int) -> Rows:
    """Return the rows of an epoch; they change between epochs only with `OnePerPrompt`."""
    return rows.of_epoch(epoch) if isinstance(rows, OnePerPrompt) else rows


def prompt_labels(shards: Artifact, split: str) -> np.ndarray:
    """Return a label of each row's prompt, in the order of `ShardRows`; int64, 8 bytes a row."""
    column = shards.read_tables(f"{split}/", ["prompt_id"])["prompt_id"]
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64)
