"""The embedded demo set: composed prompts and the pictures drawn from them."""
