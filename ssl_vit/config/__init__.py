"""Typed configuration: the schemas say what exists, resolve.py reads it. Nothing here imports torch."""
