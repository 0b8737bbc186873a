"""Points, and the bounds in which they are."""

from typing import NamedTuple  # seen by: walk made bounded

import parameters  # seen by: walk made bounded


class Point(NamedTuple):  # seen by: walk made bounded
    """A point."""

    x: int
    y: int = 1

    def __add__(self, other: object) -> "Point":
        assert isinstance(other, tuple)
        return Point(self.x + other[0], self.y + other[1])


def bounded(point: Point) -> Point:  # seen by: walk made bounded
    """Return the nearest point within the bounds."""
    low, high = parameters.BOUNDS
    return Point(max(low, min(high, point.x)), max(low, min(high, point.y)))
