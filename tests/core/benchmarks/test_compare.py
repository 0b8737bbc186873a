"""The comparison of two commits runs, and its intervals are as sure as they say."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from benchmarks.compare import interval, verdict

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("count", "ends", "sure"),
    [
        (15, (4, 12), 0.965),
        (9, (2, 8), 0.961),
        (5, (1, 5), 0.9375),
        (4, (1, 4), 0.875),
        (1, (1, 1), 0.0),
    ],
)
def test_the_interval_is_the_narrowest_that_is_sure_enough(
    count: int, ends: tuple[int, int], sure: float
) -> None:
    values = random.Random(1).sample(range(1, count + 1), count)
    low, high, found = interval(values)
    assert (low, high) == ends
    assert found == pytest.approx(sure, abs=0.001)


def test_a_sure_interval_has_the_median_about_as_often_as_it_says() -> None:
    draw = random.Random(2)
    runs = [interval([math.exp(draw.gauss(0, 0.1)) for _ in range(15)]) for _ in range(2000)]
    share = sum(low <= 1 <= high for low, high, _ in runs) / len(runs)
    assert 0.94 < share < 0.99


@pytest.mark.parametrize(
    ("low", "high", "sure", "said"),
    [
        (0.9, 0.99, 0.96, "better"),
        (0.9, 1.04, 0.96, "within"),
        (0.9, 1.2, 0.96, "unclear"),
        (1.06, 1.2, 0.96, "OVER"),
        (1.06, 1.2, 0.5, "too few"),
    ],
)
def test_the_verdict_is_that_of_the_whole_interval(
    low: float, high: float, sure: float, said: str
) -> None:
    assert said in verdict(low, high, sure)
