"""Whatever happens in whatever order, the scheduler follows the rules of the contract.

It runs alone, without a loop or a backend, so that there are many histories: by seeds for
their number, and by hypothesis, which makes one that fails short.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests._support.world.histories import CHUNK, broken
from tests._support.world.world import World


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, 40_000, CHUNK))
def test_no_history_breaks_a_promise(first: int) -> None:
    assert broken(first, CHUNK) == []


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_no_history_that_hypothesis_finds_breaks_a_promise(random: Random) -> None:
    World(random).run(steps=30)
