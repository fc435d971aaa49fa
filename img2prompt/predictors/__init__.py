"""Predictors: from pictures, or features, to prompt vectors, texts and confidences."""
