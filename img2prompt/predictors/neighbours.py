"""Nearest prompts of a vector, and the nearest-neighbour baseline.

Both are exact (faiss `IndexFlatIP` over unit rows).
"""

from collections.abc import Sequence

import faiss
import numpy as np

from img2prompt.data.vectors import unit_rows

_QUERIES_AT_ONCE = 1024
_ROWS_AT_ONCE = 65536


class NearestPrompts:
    """Readable prompts for predicted vectors.

    Args:
        vectors: prompt vectors (N, D), N >= 1.
        prompts: their N texts.
    """

    def __init__(self, vectors: np.ndarray, prompts: Sequence[str]) -> None:
        if len(vectors) != len(prompts):
            raise ValueError(f"{len(vectors)} vectors for {len(prompts)} prompts")
        self._index = _index(vectors, "vectors")
        self._prompts = prompts

    def search(self, queries: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
        """For each query (Q, D) its k nearest prompts with their cosines, the nearest first.

        Fewer than k when there are fewer prompts.
        """
        unit = unit_rows(queries, "queries").astype(np.float32)
        cosines, rows = self._index.search(unit, min(k, self._index.ntotal))
        return [
            [(self._prompts[row], float(value)) for row, value in zip(*pair, strict=True)]
            for pair in zip(rows, cosines, strict=True)
        ]


def knn_targets(
    train_features: np.ndarray, train_targets: np.ndarray, features: np.ndarray, k: int
) -> np.ndarray:
    """Vectors (Q, D) float32 of unit length: what the k most similar training rows say.

    The mean of their targets weighted by cosine, on features scaled to unit length but not centred,
    as in the k-NN evaluations of arXiv 1805.01978 and 2104.14294. Cosines below 0 weigh nothing
    unless all are.

    Args:
        train_features: (N, F), N >= 1.
        train_targets: unit rows (N, D).
        features: (Q, F).
        k: neighbours; all training rows when there are fewer.
    """
    index = _index(train_features, "train_features")
    unit = unit_rows(features, "features").astype(np.float32)
    found = []
    for start in range(0, len(unit), _QUERIES_AT_ONCE):
        part = unit[start : start + _QUERIES_AT_ONCE]
        cosines, rows = index.search(part, min(k, index.ntotal))
        weights = np.maximum(cosines, 1e-6)
        found.append(np.einsum("qk,qkd->qd", weights, train_targets[rows]))
    return unit_rows(np.concatenate(found), "neighbours").astype(np.float32)


def _index(vectors: np.ndarray, what: str) -> faiss.IndexFlatIP:
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        part = vectors[start : start + _ROWS_AT_ONCE]
        index.add(unit_rows(part, f"{what}[{start}:]").astype(np.float32))
    return index
