"""The first level of a search: the heads that trials start from."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from img2prompt.artifact import Artifact
from img2prompt.config.search import SearchConfig
from img2prompt.config.train import TrainConfig
from img2prompt.train import heads
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import Stage, Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartHead:
    """A head that trials start from (LP-FT: arXiv 2202.10054)."""

    config: TrainConfig
    run: Artifact


def best_heads(
    config: SearchConfig, widths: Iterable[int], inputs: TrainInputs, out: str
) -> dict[int, StartHead]:
    """Train the heads, and return the best head of each of the best `heads` widths, best first.

    All heads of the grid learn together, in `out`/runs/`heads_folder`. Nothing is trained, and the
    result is empty, when trials start from random heads (`base.start_from` is empty).
    """
    if not config.base.start_from:
        return {}
    grid = config.head_grid(sorted(set(widths)))
    made = heads.run(grid, inputs, Workspace(out).run(grid.name))
    configs = {head.name: head for head in grid.heads()}
    best: dict[int, StartHead] = {}
    for row in heads.table(made.uri):
        if row["end"] == "failed" or row["width"] in best or len(best) == config.heads:
            continue
        run = Artifact.load(made.path(row["name"]), Stage.TRAIN)
        best[row["width"]] = StartHead(configs[row["name"]], run)
        logger.info(
            "head %s, val cosine %.4f: trials of this width start from it", row["name"], row["best"]
        )
    return best
