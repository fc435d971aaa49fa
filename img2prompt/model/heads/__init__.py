"""Heads, which map a tower's feature to the prompt embedding."""
