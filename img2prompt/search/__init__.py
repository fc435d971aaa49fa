"""Search lora_rate, nfz_rate and head width with Ray Tune; every trial is a real training run.

A search has two levels: first many heads on the cached features, in one pass; then the best of them
with the layer plans, where each trial starts from the head of its width.

shards/ + features/ -> search/: `best.json` (one complete training config), `trials.json` (every
trial, epoch by epoch), `report.html` (the results), `space.json` (the settings and their predicted
costs), trials/<setting>/ (the training run of each trial). A killed search resumes from its trials.
"""
