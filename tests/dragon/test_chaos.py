"""Random graphs on Dragon with injected failures: see `tests/system/chaos`."""

from __future__ import annotations

import pytest

from tests.system.chaos.seeds import MODES, Seed, run_seed

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]


@pytest.mark.parametrize("mode", MODES["dragon"])
def test_a_random_graph_ends_as_the_model_predicts(mode: str) -> None:
    run_seed(Seed("dragon", 1 + MODES["dragon"].index(mode), 200, mode))
