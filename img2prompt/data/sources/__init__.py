"""Sources of pictures: one format a module, all giving the same index rows (see catalogue.py)."""
