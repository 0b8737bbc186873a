"""Rhapsody beside other systems, on the same tasks in one run: `python -m benchmarks.suite`."""
