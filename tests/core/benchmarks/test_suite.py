"""The benchmarks run all contestants on the same graphs, and go on where one of them cannot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.suite import floors, graphs, ours, rounds, tables
from benchmarks.suite.contestant import Contestant
from benchmarks.suite.graphs import Task
from benchmarks.suite.measures import Budget

ROOT = Path(__file__).parents[3]


def add(*values: int) -> int:
    """The sum of what the parents have returned, and one."""
    return 1 + sum(values)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "contestant",
    [
        ours.Threads,
        ours.Async,
        ours.Processes,
        floors.Tasks,
        floors.InExecutor,
        floors.ThreadPool,
        floors.ProcessPool,
    ],
)
async def test_a_contestant_hands_results_to_the_tasks_that_depend_on_them(
    contestant: type[Contestant],
) -> None:
    graph = [Task(add), Task(add, (1,)), Task(add, (), (0, 1)), Task(add, (10,), (2, 0))]
    async with contestant.running() as system:
        futures = system.submit_all(graph)
        await system.wait(futures)
        values = [await f if asyncio.isfuture(f) else f.result() for f in futures]
    assert values == [1, 2, 4, 16]


@pytest.mark.parametrize(
    "graph",
    [
        graphs.chain(20),
        graphs.mesh(16),
        graphs.tree(13),
        graphs.tangle(20, 5),
        graphs.mixed(2, 0.5, 7),
    ],
)
def test_tasks_of_a_graph_depend_on_earlier_ones_alone(graph: graphs.Graph) -> None:
    assert all(parent < n for n, task in enumerate(graph) for parent in task.parents)


def test_a_tree_and_a_mesh_have_one_last_task_that_all_lead_to() -> None:
    for graph in (graphs.mesh(16), graphs.tree(13)):
        parents = {parent for task in graph for parent in task.parents}
        assert set(range(len(graph))) - parents == {len(graph) - 1}


def test_the_list_schedule_fills_slots_in_order_and_waits_for_parents() -> None:
    pytest.importorskip("rhapsody_wfcommons", reason="rhapsody-wfcommons is not installed")
    first = [graphs.timed(3.0, ()), graphs.timed(1.0, ()), graphs.timed(1.0, ())]
    assert graphs.makespan(first, 2) == 3.0
    assert graphs.makespan([*first, graphs.timed(1.0, (1, 2))], 2) == 3.0
    assert graphs.makespan([*first, graphs.timed(1.0, (0,))], 2) == 4.0
    assert graphs.makespan(first, 1) == 5.0


def test_a_graph_that_was_written_is_read_again(tmp_path: Path) -> None:
    graph = [graphs.timed(0.5, ()), graphs.timed(0.25, (0,))]
    graphs.save(graph, tmp_path / "graph.json")
    assert graphs.load(tmp_path / "graph.json") == graph


def test_a_contestant_that_takes_too_long_is_killed_and_reported() -> None:
    results = rounds.Results("")
    rounds.turn(results, "slow", 0, ["engine", "--smoke"], 0.001)
    assert "timed out" in results.notes["slow"][0]


def test_a_contestant_that_fails_is_reported_with_the_reason_but_no_path() -> None:
    results = rounds.Results("")
    rounds.turn(results, "other", 99, ["engine", "--smoke"], 60)
    assert results.notes["other"] == ["failed: IndexError: list index out of range"]
    shown = "Traceback\nOSError: there is no file '/home/me/x.txt'\nmy note\n"
    assert rounds.last_error(shown) == "OSError: there is no file '...'"


def test_a_budget_is_met_or_not_by_the_medians() -> None:
    values = {"fan 10": {"us": [1.0, 3.0, 90.0], "them": [2.0]}}
    assert tables.verdict(values, Budget("fan 10", "us", "them", 1.5)).endswith(": met")
    assert tables.verdict(values, Budget("fan 10", "us", "them", 1.4)).endswith(": EXCEEDED")
    assert tables.verdict(values, Budget("fan 10", "us", "nobody", 1.4)) == ""
    assert tables.verdict(values, Budget("fan 10", "us", "them", 0.9, more=True)).count("EXCEEDED")


def test_a_budget_for_growth_allows_what_the_floor_grows_by() -> None:
    values = {"10": {"us": [2.0], "them": [1.0]}, "100": {"us": [6.0], "them": [2.0]}}
    assert "= 1.5 " in tables.verdict(values, Budget("100", "us", "them", 1.6, since="10"))


def test_peers_that_cost_less_are_named_but_not_what_is_written_by_hand() -> None:
    values = {
        "fan 10": {"Rhapsody, threads": [4.0], "ThreadPoolExecutor": [1.0], "Ray": [5.0]},
        "fan 20": {"Rhapsody, threads": [4.0], "Rhapsody, async functions": [1.0], "Ray": [3.0]},
        "fan 30": {"Ray": [3.0]},
    }
    assert list(tables.losses(values)) == [
        "fan 20: Ray (0.75 of Rhapsody, threads)",
        "fan 30: Ray (Rhapsody, threads took too long or failed)",
    ]


def test_columns_of_one_kind_are_grouped_in_any_order() -> None:
    columns = ["fan 10", "fan 1,000", "chain 20", "p50, µs", "fan 100", "first result"]
    expected = ["fan 10", "fan 100", "fan 1,000", "chain 20", "p50, µs", "first result"]
    assert list(tables.ordered({column: {} for column in columns})) == expected
