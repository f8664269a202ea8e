"""Frozen networks that turn pictures into the discrete tokens that a method predicts."""
