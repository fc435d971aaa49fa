"""Search lora_rate, nfz_rate and head width with Ray Tune; every trial is a real training run.

In two levels: many heads on the cached features, in one pass; then the best of them with the layer
plans, each trial from its head.

shards/ + features/ -> search/: `best.json` (one complete training config), `trials.json` (what was
tried, epoch by epoch), `report.html` (what they tell), `space.json` (what could be tried, and what
it costs), trials/<setting>/ (a run each). A killed search goes on from its trials.
"""

from img2prompt.stages.search.rows import BEST, REPORT, SPACE, TRIALS, summary
from img2prompt.stages.search.stage import STAGE, run

__all__ = ["BEST", "REPORT", "SPACE", "STAGE", "TRIALS", "run", "summary"]
