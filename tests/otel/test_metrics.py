"""Metrics of tasks, with a reader in memory."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rhapsody import WorkflowEngine, current_task
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
async def test_the_utilization_of_gpus_is_measured(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two GPUs, of which the second does not measure its utilization."""

    class NVMLError(Exception): ...

    def rates(gpu: int) -> Any:
        if gpu == 1:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=75, memory=10)

    library: Any = ModuleType("pynvml")
    library.NVMLError = NVMLError
    library.nvmlInit = lambda: None
    library.nvmlDeviceGetCount = lambda: 2
    library.nvmlDeviceGetHandleByIndex = lambda index: index
    library.nvmlDeviceGetUUID = "GPU-{}".format
    library.nvmlDeviceGetName = lambda gpu: "NVIDIA A100"
    library.nvmlDeviceGetUtilizationRates = rates
    monkeypatch.setitem(sys.modules, "pynvml", library)
    for _ in range(2):
        async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
            await flow.function_task(lambda: None)()
    ((attributes, point),) = points(traced)["hw.gpu.utilization"].items()
    assert (attributes, point.value) == (("GPU-0", "NVIDIA A100"), 0.75)


@pytest.mark.asyncio
async def test_a_machine_without_a_driver_has_no_utilization(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NVMLError(Exception): ...

    def fail() -> None:
        raise NVMLError("NVML Shared Library Not Found")

    library: Any = ModuleType("pynvml")
    library.NVMLError, library.nvmlInit = NVMLError, fail
    monkeypatch.setitem(sys.modules, "pynvml", library)
    async with WorkflowEngine.create(observers=[traced.observer()]) as flow:
        await flow.function_task(lambda: None)()
    assert "hw.gpu.utilization" not in points(traced)
