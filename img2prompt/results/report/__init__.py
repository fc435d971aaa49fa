"""What a search has found, as one HTML page, and the statistics behind it."""
