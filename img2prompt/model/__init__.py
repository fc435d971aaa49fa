"""One process, one device: the vision tower, its head and the prompt encoder."""
