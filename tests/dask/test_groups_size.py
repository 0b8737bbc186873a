"""Size of groups of calls, without a cluster."""

from __future__ import annotations

import pytest

from rhapsody_dask.groups import PROBES, SCHEDULING_COST, TARGET_SECONDS, Function


def test_the_size_of_a_group_follows_from_the_time_of_its_calls() -> None:
    function = Function()
    function.measure(0.5)  # the first call often imports modules
    assert not function.known
    function.measure(0.001)
    assert function.known
    assert function.size(1000) == pytest.approx(TARGET_SECONDS / 0.001, abs=1)
    assert function.size(10) == pytest.approx(10 * SCHEDULING_COST / 0.001, abs=1)
    for _ in range(PROBES):
        function.measure(1.0)
    assert function.size(1000) == 1


def test_a_function_with_a_long_first_call_is_not_grouped() -> None:
    function = Function()
    function.slow = True
    assert function.known
    assert function.size(1000) == 1
