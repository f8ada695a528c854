"""Measurements of speed and memory; `python -m benchmarks` runs them, no test depends on a time."""
