"""Measurements, each a ratio taken in one run: `python -m benchmarks.run --help`."""
