"""Typed configuration: `schema.py` says what exists, `load.py` reads it. Neither imports torch."""
