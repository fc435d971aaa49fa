"""What came out, and how good it is."""
