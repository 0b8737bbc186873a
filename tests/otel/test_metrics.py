"""Metrics of tasks, with a reader in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody import WorkflowEngine, current_task
from rhapsody.plugins import NodeSample
from tests.otel.conftest import Traced


def points(traced: Traced) -> dict[str, dict[tuple[Any, ...], Any]]:
    """Return the data points of all metrics, by the values of their attributes, sorted by name."""
    data = traced.reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    found: dict[str, dict[tuple[Any, ...], Any]] = {}
    for metric in scope.metrics:
        found[metric.name] = {
            tuple(value for _, value in sorted((point.attributes or {}).items())): point
            for point in metric.data.data_points
        }
    return found


@pytest.mark.asyncio
async def test_tasks_are_counted_by_state_and_attempts_are_timed(traced: Traced) -> None:
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:

        @flow.function_task(retries=1)
        def again() -> None:
            if current_task().attempt == 1:
                raise KeyError("not yet")

        @flow.function_task
        def fails() -> None:
            raise ValueError("no")

        await asyncio.gather(again(), fails(), return_exceptions=True)
        assert await flow.executable_task(name="show")(lambda: ["echo", "x"])() == "x\n"
    found = points(traced)
    counts = {state: point.value for (state,), point in found["rhapsody.task.count"].items()}
    assert {state: count for state, count in counts.items() if count} == {"done": 2, "failed": 1}
    assert found["rhapsody.task.retries"]["local", "again"].value == 1
    duration = found["rhapsody.attempt.duration"]
    assert duration["KeyError", "local", "again", "failed"].count == 1
    assert duration["local", "again", "done"].count == 1
    assert duration["ValueError", "local", "fails", "failed"].count == 1
    assert found["rhapsody.attempt.queue_time"]["local", "again"].count == 2
    assert found["rhapsody.attempt.cpu.time"]["local", "show"].value > 0


@pytest.mark.asyncio
async def test_engines_add_to_the_same_metrics(traced: Traced) -> None:
    async def run() -> None:
        async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
            await flow.function_task(name="f")(lambda: None)()

    await asyncio.gather(run(), run())
    assert points(traced)["rhapsody.task.count"][("done",)].value == 2


@pytest.mark.asyncio
async def test_the_load_of_nodes_is_measured(traced: Traced) -> None:
    observer = traced.observer()
    sample = NodeSample("node17", 5.0, 0.5, 0.25, 2**34, 10, 20, 30, 40, (0.75, 0.5))
    async with WorkflowEngine.create(observers=[observer]):
        observer.rhapsody_node_samples([sample, sample])
    found = points(traced)
    for name, expected in {
        "system.cpu.utilization": {("node17",): 0.5},
        "system.memory.utilization": {("node17",): 0.25},
        "system.disk.io": {("read", "node17"): 100, ("write", "node17"): 200},
        "system.network.io": {("node17", "receive"): 300, ("node17", "transmit"): 400},
        "hw.gpu.utilization": {("node17", "0"): 0.75, ("node17", "1"): 0.5},
    }.items():
        values = {place: each.value for place, each in found[name].items() if "node17" in place}
        assert values == expected
