"""Raw pictures and prompts -> shards and features; one stage a file, each with its `run`."""
