"""A random graph on a pilot with injected failures: see `tests/system/chaos`."""

from __future__ import annotations

import pytest

from tests.system.chaos.seeds import Seed, run_seed

pytestmark = [pytest.mark.timeout(400), pytest.mark.long]


def test_a_random_graph_ends_as_the_model_predicts() -> None:
    run_seed(Seed("pilot", 1, 200))
