"""The arrows between folders: one file a stage, `run(config, inputs, out) -> Artifact`."""
