"""Units of the figures."""

FACTOR = 4


def converted(number: float) -> float:
    """Return a number in another unit."""
    return number * FACTOR
