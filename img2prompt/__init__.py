"""Predict the prompt behind a generated picture, on Ray."""
