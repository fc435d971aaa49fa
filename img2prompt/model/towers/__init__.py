"""Vision towers: the seam, one family a file, and strict reading of their weights."""
