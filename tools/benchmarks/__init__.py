"""Benchmarks: how fast the parts are, each beside what the field uses for the same work."""
