"""Vision towers, one family a file, and strict loading of their weights."""
