"""A module that only tasks import."""

WEIGHTS = (1, 2, 4)  # seen by: late


def weighted(numbers: list[float]) -> float:  # seen by: late
    """Return a weighted sum."""
    return sum(w * n for w, n in zip(WEIGHTS, numbers, strict=False))
