"""A set and a map of texts that hold only 64-bit hashes, for tens of millions of texts.

Memory, measured with tracemalloc in tests/data/test_hashed.py: a text of a set takes 8 bytes and
one of a map 16, and at most three times that while arrays are merged. So the 14 million pictures of
DiffusionDB Large take 112 MB or 224 MB (a Python set of their ids takes 2 GB), and the odds that
any two of 14 million texts share a hash are 5 in a million.

Hashes are in sorted runs, each more than twice as long as the next, so that N texts that are added
in batches are searched in at most log2(N) runs and moved at most log2(N) times.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


class HashedSet:
    """Texts that were added."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._table = _HashTable()
        self.add(texts)

    def add(self, texts: Sequence[str]) -> np.ndarray:
        """Add N texts; return bool (N,), true for the first occurrence of each new one."""
        return self._table.add(_hashes(texts), np.empty((len(texts), 0), np.uint64))[0]

    def __contains__(self, text: str) -> bool:
        return text in self._table

    def __len__(self) -> int:
        return len(self._table)


class HashedMap:
    """Keys and the first value that each came with, both texts."""

    def __init__(self) -> None:
        self._table = _HashTable()

    def add(self, keys: Sequence[str], values: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Add N keys with their values; a key that is known keeps its first value.

        Returns:
            new: bool (N,), true for the first occurrence of each new key.
            same: bool (N,), true where the value is the first one of its key.
        """
        hashed = _hashes(values)[:, None]
        new, first = self._table.add(_hashes(keys), hashed)
        return new, (first == hashed)[:, 0]

    def __len__(self) -> int:
        return len(self._table)


@dataclass(frozen=True)
class _Run:
    """Distinct keys (K,) uint64 in ascending order, and their values (K, W) uint64."""

    keys: np.ndarray
    values: np.ndarray

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the row of each key, and whether it is present."""
        rows = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return rows, self.keys[rows] == keys

    def contains(self, key: np.uint64) -> bool:
        row = self.keys.searchsorted(key)
        return bool(row < len(self.keys) and self.keys[row] == key)

    def merge(self, other: "_Run") -> "_Run":
        """Return both in one; they have no key in common."""
        at = np.searchsorted(self.keys, other.keys)
        values = np.insert(self.values, at, other.values, axis=0)
        return _Run(np.insert(self.keys, at, other.keys), values)


class _HashTable:
    """Map of uint64 keys to W uint64 values each; W is 0 for a set."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(len(run.keys) for run in self._runs)

    def __contains__(self, text: str) -> bool:
        key = _hashes([text])[0]
        return any(run.contains(key) for run in self._runs)

    def add(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add keys (N,) with values (N, W) unless they are known.

        Returns:
            new: bool (N,), true for the first occurrence of each new key.
            first: uint64 (N, W), the values that each key was first added with.
        """
        keys, index, inverse = np.unique(keys, return_index=True, return_inverse=True)
        first, known = values[index], np.zeros(len(keys), bool)
        for run in self._runs:
            rows, present = run.find(keys)
            first[present] = run.values[rows[present]]
            known |= present
        new = np.zeros(len(values), bool)
        new[index[~known]] = True
        if new.any():
            self._append(_Run(keys[~known], first[~known]))
        return new, first[inverse]

    def _append(self, run: _Run) -> None:
        while self._runs and len(self._runs[-1].keys) < 2 * len(run.keys):
            run = self._runs.pop().merge(run)
        self._runs.append(run)


def _hashes(texts: Iterable[str]) -> np.ndarray:
    """Return the 64-bit BLAKE2b hashes (N,) of N texts."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64)
