"""Prompt text: normalisation, blocked words, language."""
