"""A lattice on which walkers move."""

from lattice.grid import Point  # seen by: walk made bounded
from lattice.walkers import Lazy, Walker, make  # seen by: walk made

__all__ = ["Lazy", "Point", "Walker", "make"]  # seen by: -
