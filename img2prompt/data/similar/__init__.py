"""Near duplicates: exact matches above a cosine, de-duplication, leak-free splits."""
