"""Mean cosine on the validation rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from img2prompt.model.average import other_weights
from img2prompt.model.loss import cosines
from img2prompt.train.batches import Rows, WorkerRank, prefetch, sum_over_workers, to_device
from img2prompt.train.engines.base import Engine


def _nothing(*_: Any) -> None: ...


@dataclass(frozen=True)
class Candidate:
    """A model to validate."""

    engine: Engine
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Learned tensors to validate in place of the engine's own; empty: its own."""

    def predict(self, inputs: Tensor) -> Tensor:
        """Inputs of a batch to (B, 384)."""
        if not self.weights:
            return self.engine.forward(inputs)
        with other_weights(self.engine.module, self.weights):
            return self.engine.forward(inputs)


@torch.no_grad()
def validate(
    candidates: Sequence[Candidate],
    val: Rows,
    worker: WorkerRank,
    batch_size: int,
    beat: Callable[[str], None] = _nothing,
) -> list[float]:
    """Return each candidate's mean cosine over the rows of all workers, which are read once.

    Sums and counts are reduced, never means. Each worker reads one stretch of the rows. All run
    equally many batches, as ZeRO-3 needs; rows beyond the end are the first ones again, and are
    dropped from the sums.
    """
    for candidate in candidates:
        candidate.engine.module.eval()
    share = -(-len(val) // worker.workers)
    mine = np.arange(worker.rank * share, (worker.rank + 1) * share)
    starts = range(0, len(mine), batch_size)
    shares = (mine[start : start + batch_size] % len(val) for start in starts)
    totals = torch.zeros(len(candidates) + 1, dtype=torch.float64)
    for start, batch in zip(starts, prefetch(val, shares), strict=True):
        beat(f"validating from row {mine[start]}")
        batch = to_device(batch, candidates[0].engine.device)
        counted = torch.from_numpy(mine[start : start + batch_size] < len(val))
        for number, candidate in enumerate(candidates):
            scores = cosines(candidate.predict(batch.inputs), batch.targets).double().cpu()
            totals[number] += scores[counted].sum()
        totals[-1] += counted.sum()
    totals = sum_over_workers(totals, worker)
    return (totals[:-1] / totals[-1]).tolist()
