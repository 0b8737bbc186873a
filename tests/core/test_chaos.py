"""Random graphs end as they must, whatever goes wrong meanwhile: see `tests/system/chaos`."""

from __future__ import annotations

import pytest

from tests.system.chaos.seeds import Seed, run_seed

pytestmark = pytest.mark.timeout(300)

THREADS = (2, 3, 4, 7, 8, 9, 16, 17, 18, 20)
PROCESSES = (1, 3, 4, 5, 7, 8, 9, 12, 16, 18, 19)
FAILED_ONCE: list[tuple[str, int, int]] = []
"""Backend, seed and number of tasks of those that have failed, or failed now and then."""

SEEDS = (
    [("threads", number, 200) for number in THREADS]
    + [("processes", number, 200) for number in PROCESSES]
    + FAILED_ONCE
)


@pytest.mark.parametrize(("backend", "number", "tasks"), SEEDS)
def test_a_random_graph_ends_as_it_must(backend: str, number: int, tasks: int) -> None:
    said = run_seed(Seed(backend, number, tasks))
    if said.startswith("skipped"):
        pytest.skip(said)
