"""Comparison of Rhapsody with other systems on the same tasks: `python -m benchmarks.suite`."""
