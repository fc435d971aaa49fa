"""What runs a backward pass and an optimiser step: plain torch or DeepSpeed."""
