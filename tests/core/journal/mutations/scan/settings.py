"""Settings of the scan."""

GRAVITY = 9.81  # seen by: fall swing
AIR = {"density": 1.2, "still": True}  # seen by: drag
PLANETS = {"moon": (1.62, 0.0), "mars": (3.72, 0.02)}  # seen by: planet
UNITS = ["m", "s"]  # seen by: label
LIMIT = 40  # seen by: limit
ROUNDED = 3  # seen by: fall throw swing drag total


def rounded(number: float) -> float:  # seen by: fall throw swing drag total
    """Return a number with few digits."""
    return round(number, ROUNDED)


def unused(number: float) -> float:  # seen by: -
    """Return what no task uses."""
    return number * 2 + GRAVITY
