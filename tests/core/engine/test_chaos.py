"""Random graphs end as they must, whatever goes wrong meanwhile: see `tests/system/chaos`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.system.chaos.graphs import Call
from tests.system.chaos.model import CANCELLED, DEPENDENCY, wrong_ends
from tests.system.chaos.seeds import Seed, run_seed

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]

THREADS = (2, 3, 7, 8, 9, 16, 18, 20)
PROCESSES = (1, 3, 4, 5, 7, 8, 9, 12, 16, 18, 19)
FAILED_ONCE = [
    Seed("threads", 1, 200, "disk"),  # a service whose output found no space
    Seed("threads", 5, 200, "shutdown"),  # a task that was cancelled before its file was saved
    Seed("threads", 1161, 2000),  # tasks that were cancelled while results were looked up
    Seed("processes", 1228, 2000),  # the same
]

SEEDS = [
    *(Seed("threads", number, 200) for number in THREADS),
    *(Seed("processes", number, 200) for number in PROCESSES),
    *FAILED_ONCE,
]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed.backend}-{seed.number}")
def test_a_random_graph_ends_as_it_must(seed: Seed) -> None:
    said = run_seed(seed)
    if said.startswith("skipped"):
        pytest.skip(said)


def test_what_had_failed_before_a_dependency_was_lost_and_cancelled_is_no_fault() -> None:
    """Seed 1049 of 2000 calls on Dask, whose worker was killed before the shutdown."""
    graph = [Call(0, "function"), Call(1, "broken"), Call(2, "function", (0, 1))]
    ends = {0: CANCELLED, 1: ("failed", "OSError"), 2: DEPENDENCY}
    assert wrong_ends(graph[2:], ends, (), lost=True, cut_short=True, pushed=True) == []
    assert wrong_ends(graph[2:], ends, (), lost=True, cut_short=True)
    graph[2], ends[2] = Call(2, "fails", (0,)), ("failed", "ValueError")
    assert wrong_ends(graph[2:], ends, (), lost=True, cut_short=True, pushed=True) == []
    assert wrong_ends(graph[2:], ends, (), lost=True, cut_short=True)
    ends[2] = ("failed", "OSError")
    assert wrong_ends(graph[2:], ends, (), lost=True, cut_short=True, pushed=True)


def test_a_value_that_was_used_and_then_lost_with_the_scheduler_is_no_fault() -> None:
    """Seed 33 of 500 calls on Dask, whose scheduler was killed while a value was fetched."""
    graph = [Call(0, "function"), Call(1, "coroutine", (0,)), Call(2, "function", (1,))]
    lost = ("failed", "BackendUnavailableError")
    more: Any = {"may_fail": ("function", "coroutine", "program"), "lost": True}
    for ends in ({0: lost, 1: lost, 2: ("done", 3)}, {0: lost, 1: ("done", 1), 2: ("done", 3)}):
        assert wrong_ends(graph, ends, (), **more, pushed=True) == []
        assert wrong_ends(graph, ends, (), **more)
        assert wrong_ends(graph, {**ends, 2: ("done", 4)}, (), **more, pushed=True)
    graph[1] = Call(1, "program", (0,))
    assert wrong_ends(graph, {0: lost, 1: ("done", 1), 2: ("done", 3)}, (), **more, pushed=True)
    failed = {0: ("failed", "ValueError"), 1: ("done", 1), 2: ("done", 3)}
    assert wrong_ends(graph, failed, (), **more, pushed=True)
