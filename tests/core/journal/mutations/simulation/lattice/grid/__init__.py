"""Points of the lattice."""

from .points import Point, bounded  # seen by: walk made bounded

__all__ = ["Point", "bounded"]  # seen by: -
