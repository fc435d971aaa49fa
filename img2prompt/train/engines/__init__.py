"""Engines run the backward pass and the optimiser step: plain torch or DeepSpeed."""
