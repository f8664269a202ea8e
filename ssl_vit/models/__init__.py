"""The Vision Transformer that every method trains, and its weights in files."""
