"""Rows in, rows out, in one process: prompts, pictures, near duplicates, splits and batch order."""
