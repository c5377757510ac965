"""Benchmarks: ``python -m bench``. Every figure is a ratio against a peer in the same process."""
