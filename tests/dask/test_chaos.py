"""Random graphs on Dask end as they must: see `tests/system/chaos`."""

from __future__ import annotations

import pytest

from tests.system.chaos.seeds import Seed, run_seed

pytestmark = pytest.mark.timeout(300)

SEEDS = (1, 4, 8, 9)  # a killed program, a killed scheduler, and killed workers
FAILED_ONCE: list[tuple[int, int]] = []
"""Seed and number of tasks of those that have failed, or failed now and then."""


@pytest.mark.parametrize(("number", "tasks"), [*((n, 200) for n in SEEDS), *FAILED_ONCE])
def test_a_random_graph_ends_as_it_must(number: int, tasks: int) -> None:
    run_seed(Seed("dask", number, tasks))
