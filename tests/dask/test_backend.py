"""States of the backend, use before its start and after its end, and cancellation."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.plugins import NodeSample
from rhapsody.states import StateMapper, TasksMainStates
from rhapsody_dask import DaskExecutionBackend
from rhapsody_dask.shipping import NodesSetup

pytestmark = pytest.mark.asyncio


async def test_states_of_dask_map_to_main_states(backend: DaskExecutionBackend) -> None:
    mapper = backend.get_task_states_map()
    assert mapper.to_main_state("memory") is TasksMainStates.DONE
    assert mapper.to_main_state("processing") is TasksMainStates.SUBMITTED
    assert mapper.to_main_state("long-running") is TasksMainStates.RUNNING
    assert StateMapper("dask").terminal_states[0] == mapper.DONE


async def test_cancel_all_tasks_cancels_all_open_tasks(
    backend: DaskExecutionBackend, flow: WorkflowEngine
) -> None:
    @flow.function_task
    async def wait() -> None:
        await asyncio.sleep(60)

    futures = [wait() for _ in range(10)]
    await flow.submit()
    async with asyncio.timeout(20):
        while len(backend.still_running) < 10:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await backend.cancel_all_tasks() == 10
        assert await backend.cancel_all_tasks() == 0
        results = await asyncio.gather(*futures, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_workers_report_the_load_of_their_nodes(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NodesSetup, "interval", 0.05)
    samples: asyncio.Queue[NodeSample] = asyncio.Queue()
    backend = await DaskExecutionBackend(cluster=cluster)
    backend.watch_nodes(samples.put_nowait)
    async with asyncio.timeout(60):
        sample = await samples.get()
    backend.watch_nodes(None)
    await backend.shutdown()
    assert sample.node == socket.gethostname()
    assert 0 < sample.memory < 1
    assert sample.gpus == ()


async def test_use_before_the_start_raises() -> None:
    backend = DaskExecutionBackend()
    with pytest.raises(RuntimeError, match="await DaskExecutionBackend"):
        await backend.submit_tasks([])
    with pytest.raises(RuntimeError, match="await DaskExecutionBackend"):
        await backend.cancel_task("task.000001")
    with pytest.raises(RuntimeError, match="await DaskExecutionBackend"):
        await backend.cancel_all_tasks()
    assert backend.state() == "initialized"


async def test_cancel_after_shutdown_does_nothing(cluster: Any) -> None:
    backend = await DaskExecutionBackend(cluster=cluster)
    await backend.shutdown()
    assert await backend.cancel_task("task.000001") is False
    assert await backend.cancel_all_tasks() == 0
