"""The encoder: its architecture, its initial weights, and its weights in files."""
