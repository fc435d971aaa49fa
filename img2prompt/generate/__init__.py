"""Prompts -> pictures by a diffusers pipeline, as a source that `prepare` reads."""
