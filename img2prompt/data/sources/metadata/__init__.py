"""Prompts that programs write into their pictures: one program a module (see programs.py)."""
