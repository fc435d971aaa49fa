"""Ways to answer: from pictures or features to prompt vectors and texts."""
