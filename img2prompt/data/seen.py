"""Which pictures came before, and with which prompt, in 16 bytes a picture."""

import hashlib

import numpy as np

_NEWEST = 1 << 18  # pictures in a dict (about 150 bytes each) before they join the arrays


class Seen:
    """Pictures and the prompt of each, as two 64-bit hashes.

    14 million pictures take 224 MB, twice that while new ones join. The odds that any two of them
    share a hash are 5 in a million.
    """

    def __init__(self) -> None:
        self._pictures = np.empty(0, np.uint64)
        self._prompts = np.empty(0, np.uint64)
        self._newest: dict[int, int] = {}

    def add(self, picture: str, prompt: str) -> bool | None:
        """None for a new picture, which is kept; else whether it came with this prompt before."""
        key, value = _hash(picture), _hash(prompt)
        before = self._newest.get(key)
        if before is None:
            before = self._older(key)
        if before is not None:
            return before == value
        self._newest[key] = value
        if len(self._newest) >= _NEWEST:
            self._merge()
        return None

    def _older(self, key: int) -> int | None:
        place = int(np.searchsorted(self._pictures, np.uint64(key)))
        found = place < len(self._pictures) and int(self._pictures[place]) == key
        return int(self._prompts[place]) if found else None

    def _merge(self) -> None:
        pictures = np.fromiter(self._newest.keys(), np.uint64)
        prompts = np.fromiter(self._newest.values(), np.uint64)
        order = np.argsort(pictures)
        places = np.searchsorted(self._pictures, pictures[order])
        self._pictures = np.insert(self._pictures, places, pictures[order])
        self._prompts = np.insert(self._prompts, places, prompts[order])
        self._newest.clear()


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
