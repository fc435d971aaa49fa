"""How good an engine is on rows that no training sees."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from img2prompt.model.loss import cosines
from img2prompt.train.batches import Rows, WorkerRank, prefetch, sum_of_all, to_device
from img2prompt.train.engines.base import Engine


def _nothing(*_: Any) -> None: ...


@torch.no_grad()
def validate(
    engines: Sequence[Engine],
    val: Rows,
    place: WorkerRank,
    batch_size: int,
    beat: Callable[[str], None] = _nothing,
) -> list[float]:
    """Each engine's mean cosine over the rows of all workers, which are read once.

    Sums and counts are reduced, never means. Each worker reads one stretch of the rows. All run
    equally many batches, as ZeRO-3 needs; rows beyond the end are the first ones again, and are
    dropped from the sums.
    """
    for engine in engines:
        engine.module.eval()
    share = -(-len(val) // place.workers)
    mine = np.arange(place.rank * share, (place.rank + 1) * share)
    starts = range(0, len(mine), batch_size)
    shares = (mine[start : start + batch_size] % len(val) for start in starts)
    totals = torch.zeros(len(engines) + 1, dtype=torch.float64)
    for start, batch in zip(starts, prefetch(val, shares), strict=True):
        beat(f"validating from row {mine[start]} on")
        inputs, targets = to_device(batch, engines[0].device)
        kept = torch.from_numpy(mine[start : start + batch_size] < len(val))
        for number, engine in enumerate(engines):
            scores = cosines(engine.forward(inputs), targets).double().cpu()
            totals[number] += scores[kept].sum()
        totals[-1] += kept.sum()
    totals = sum_of_all(totals, place)
    return (totals[:-1] / totals[-1]).tolist()
