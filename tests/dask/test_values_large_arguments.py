"""Large arguments: sent once, shared and released."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.states import TasksMainStates
from rhapsody_dask import DaskExecutionBackend
from rhapsody_testing import Driver

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.asyncio


async def test_a_large_argument_is_sent_once(
    backend: DaskExecutionBackend, flow: WorkflowEngine
) -> None:
    @flow.function_task
    def total(values: Any, factor: int) -> float:
        return float(values.sum() * factor)

    values = np.ones(1_000_000)
    results = await asyncio.gather(*(total(values, factor) for factor in range(20)))
    assert results == [1_000_000.0 * factor for factor in range(20)]
    assert len(backend._shared) == 1


async def test_an_argument_changed_between_two_calls_is_sent_again(flow: WorkflowEngine) -> None:
    @flow.function_task
    def first(values: Any) -> float:
        return float(values[0])

    values = np.zeros(1_000_000)
    assert await first(values) == 0.0
    values[0] = 7.0
    assert await first(values) == 7.0


async def test_large_arrays_are_read_only_in_tasks(
    flow: WorkflowEngine,
) -> None:
    @flow.function_task
    def zeros(size: int) -> Any:
        return np.zeros(size)

    @flow.function_task
    def may_write(values: Any) -> bool:
        return bool(values.flags.writeable)

    big, small = 200_000, 20
    assert not await may_write(np.zeros(big))
    assert await may_write(np.zeros(small))
    pushed_down = zeros(big)
    assert not await may_write(pushed_down)
    assert await may_write(zeros(small))
    assert (await pushed_down).flags.writeable


@pytest.mark.parametrize("big", [b"x" * 2_000_000, "ü" * 2_000_000, list(range(400_000))])
async def test_large_arguments_arrive_unchanged(flow: WorkflowEngine, big: Any) -> None:
    @flow.function_task
    def check(values: Any, *, also: Any) -> tuple[str, int, bool]:
        return type(values).__name__, len(values), values == also

    assert await check(big, also=big) == (type(big).__name__, len(big), True)


async def test_a_large_result_is_writable(flow: WorkflowEngine) -> None:
    @flow.function_task
    def make() -> Any:
        return np.arange(1_000_000)

    values = await make()
    values[0] = 5
    assert values[:3].tolist() == [5, 1, 2]


async def test_a_large_argument_is_released_after_its_last_task(
    backend: DaskExecutionBackend, flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody_dask.values.IDLE_SECONDS", 0.0)

    @flow.function_task
    def size(values: Any) -> int:
        return len(values)

    assert await size(b"y" * 3_000_000) == 3_000_000
    async with asyncio.timeout(30):
        while len(backend._shared) or await _keys_on_workers(backend):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_an_argument_of_a_task_canceled_while_it_is_sent_is_released(
    backend: DaskExecutionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsody_dask.values.IDLE_SECONDS", 0.0)
    scatter = backend.client.scatter

    async def scatter_after_the_end(*args: Any, **kwargs: Any) -> Any:
        await backend.cancel_all_tasks()
        async with asyncio.timeout(60):
            while backend.still_running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return await scatter(*args, **kwargs)

    monkeypatch.setattr(backend.client, "scatter", scatter_after_the_end)
    async with Driver(backend) as driver:
        end = await driver.run_one(driver.call(len, b"z" * 3_000_000))
        assert end.state is TasksMainStates.CANCELED
        async with asyncio.timeout(60):
            while len(backend._shared):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def _keys_on_workers(backend: DaskExecutionBackend) -> list[str]:
    has_what = await backend.client.has_what()
    return [key for keys in has_what.values() for key in keys if backend.session.uid in str(key)]
