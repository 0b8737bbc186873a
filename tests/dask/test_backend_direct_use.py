"""Use of the backend without an engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody_dask import DaskExecutionBackend
from tests._support.direct import Direct, check_direct_use


@pytest.mark.asyncio
async def test_the_backend_runs_tasks_without_an_engine(backend: DaskExecutionBackend) -> None:
    await check_direct_use(backend)


@pytest.mark.asyncio
async def test_tasks_of_two_backends_may_have_the_same_uids(
    cluster: Any, backend: DaskExecutionBackend
) -> None:
    async with DaskExecutionBackend(cluster=cluster) as other:
        tasks = [{"uid": "task.1", "function": str, "args": [text]} for text in ("ours", "theirs")]
        runs = [Direct(one).run(task) for one, task in zip((backend, other), tasks, strict=True)]
        async with asyncio.timeout(20):
            ended = await asyncio.gather(*runs)
    assert [run[0][1]["return_value"] for run in ended] == ["ours", "theirs"]


@pytest.mark.asyncio
async def test_results_of_synchronous_methods_can_be_awaited() -> None:
    backend: Any = DaskExecutionBackend()
    notified: list[tuple[str, str]] = []
    backend.register_callback(callback=lambda task, state: notified.append((task["uid"], state)))
    assert await backend.task_state_cb() is None
    assert await backend.task_state_cb({"uid": "x"}, "RUNNING") is None
    backend.task_state_cb({"uid": "y"}, "RUNNING")
    assert [uid for uid, _ in notified] == ["x", "y"]
    assert await backend.build_task() is None
    built = backend.build_task({"uid": "x"})
    assert built == await built == {"uid": "x"}
