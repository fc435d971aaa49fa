"""Search lora_rate, nfz_rate and head width with Ray Tune; every trial is a real training run.

In two levels: many heads on the cached features, in one pass; then the best of them with the layer
plans, each trial from its head.

shards/ + features/ -> search/: `best.json` (one complete training config), `trials.json` (what was
tried, epoch by epoch), `report.html` (the results), `space.json` (what could be tried, and its
cost), trials/<setting>/ (a run each). A killed search resumes from its trials.
"""
