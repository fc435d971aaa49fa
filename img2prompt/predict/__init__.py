"""Finished runs -> scores, predictions, a submission, exported files."""
