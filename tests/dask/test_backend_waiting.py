"""Warnings about tasks that no worker can run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from tests.dask.clusters import scale

pytestmark = pytest.mark.asyncio


async def _logged(caplog: pytest.LogCaptureFixture, words: str, count: int) -> None:
    async with asyncio.timeout(30):
        while sum(words in one.getMessage() for one in caplog.records) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_reason_why_tasks_wait_is_logged_repeatedly(
    empty: Any,
    waiting: WorkflowEngine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rhapsody_dask.backend.FIRST_CHECK", 0.1)
    monkeypatch.setattr("rhapsody_dask.backend.WARNING_INTERVAL", 0.1)
    task = waiting.function_task(int)
    first = task(1)
    await _logged(caplog, "tasks waiting: 1; the Dask scheduler at tcp://127.0.0.1:", 2)
    lost = task(2, task_description={"workers": ["tcp://127.0.0.1:9"]})
    await scale(empty, 1)
    assert await first == 1
    await _logged(caplog, "waiting for a worker that matches tcp://127.0.0.1:9; workers of", 2)
    lost.cancel()
    await lost.ended()
    caplog.clear()
    assert await task(3) == 3
    assert not [one for one in caplog.records if one.name == "rhapsody.dask"]
