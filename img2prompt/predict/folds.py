"""Folds of prompt groups, for fits that are scored on pictures they have not seen."""

import numpy as np


def group_folds(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the fold (N,) of each row, so that rows of one group are in one fold.

    There are as many folds as groups when there are fewer groups than `count`.
    """
    labels, number = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    return (order % min(count, len(labels)))[number]
