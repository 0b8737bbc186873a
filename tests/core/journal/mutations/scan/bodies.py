"""Bodies that are thrown."""

import enum  # seen by: shape
import math  # seen by: drag mass shape
from dataclasses import dataclass, field  # seen by: drag mass track shape


class Shape(enum.Enum):  # seen by: shape
    """Shapes with their coefficients of drag."""

    BALL = 0.47
    CUBE = 1.05


def area(radius: float) -> float:  # seen by: drag shape
    """Return the area of a cross-section."""
    return math.pi * radius**2


@dataclass(frozen=True)
class Body:  # seen by: drag mass
    """A body with a density."""

    radius: float = 0.5
    density: float = 2.0

    @property
    def volume(self) -> float:
        """The volume."""
        return self.radius**3 * 4

    def mass(self) -> float:
        """Return the mass."""
        return self.density * self.volume


class Hollow(Body):  # seen by: mass
    """A body that is hollow."""

    wall = 0.25

    def mass(self) -> float:
        """Return the mass of the wall."""
        return super().mass() * self.wall

    @classmethod
    def small(cls) -> "Hollow":
        """Return a small body."""
        return cls(radius=0.125)

    @staticmethod
    def pieces(number: int) -> int:
        """Return a number of pieces."""
        return number + 2


@dataclass
class Track:  # seen by: track
    """Places of a body."""

    places: list[float] = field(default_factory=lambda: [0.0, 1.0])
    step: float = 0.5

    def __len__(self) -> int:
        return len(self.places) + 1

    def moved(self) -> float:
        """Return the last place after a step."""
        return self.places[-1] + self.step


def describe(shape: Shape, radius: float = 1.0) -> str:  # seen by: shape
    """Return a description of a shape."""
    if shape is Shape.BALL:
        return f"ball {area(radius):.2f}"
    elif shape is Shape.CUBE:
        return f"cube {area(radius) * shape.value:.2f}"
    return "other"
