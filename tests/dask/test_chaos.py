"""Random graphs on Dask with injected failures: see `tests/system/chaos`."""

from __future__ import annotations

import pytest

from tests.system.chaos.seeds import Seed, run_seed

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]

SEEDS = (1, 4, 8, 9)  # a killed program, a killed scheduler, and killed workers
FAILED_ONCE: list[Seed] = []
"""Those that have failed, or failed now and then."""


@pytest.mark.parametrize("seed", [*(Seed("dask", n, 200) for n in SEEDS), *FAILED_ONCE])
def test_a_random_graph_ends_as_the_model_predicts(seed: Seed) -> None:
    run_seed(seed)
