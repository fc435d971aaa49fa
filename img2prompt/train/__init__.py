"""Train a probe, a fine-tune or a trial of a search; `run.py` is the driver."""
