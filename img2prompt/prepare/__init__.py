"""Raw pictures and prompts -> shards and features. One stage a file, each with its `run`."""
