"""Walkers, which are registered under their names."""

import random  # seen by: walk made
from collections.abc import Iterator  # seen by: walk made
from typing import Any, ClassVar  # seen by: walk made

from .grid import Point, bounded  # seen by: walk made

STEPS = ((1, 0), (0, 1), (-1, 0))  # seen by: walk made


class Walker:  # seen by: walk made
    """A walker with a generator of its own."""

    kinds: ClassVar[dict[str, type["Walker"]]] = {}
    stride = 1

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        Walker.kinds[cls.__name__.lower()] = cls

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def path(self, length: int) -> Iterator[Point]:
        """Yield the points of a path."""
        point = Point(2)
        for _ in range(length):
            for _ in range(self.stride):
                point = bounded(point + self.random.choice(STEPS))
            yield point

    def __call__(self, length: int) -> list[tuple[int, int]]:
        return [tuple(point) for point in self.path(length)]


class Lazy(Walker):  # seen by: walk made
    """A walker that rests."""

    rest = 2

    def path(self, length: int) -> Iterator[Point]:
        for number, point in enumerate(super().path(length)):
            if number % self.rest == 0:
                yield point


class Quick(Walker):  # seen by: walk made
    """A walker with long steps."""

    stride = 3


def make(name: str, seed: int) -> Walker:  # seen by: made walk
    """Return a walker of a kind."""
    return Walker.kinds[name](seed)
