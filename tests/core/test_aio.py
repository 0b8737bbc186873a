"""Tests of core's additions to asyncio."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

import pytest

from rhapsody.aio import eager_task

pytestmark = pytest.mark.asyncio


def begin(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return eager_task(coroutine, name="eager_task", context=contextvars.copy_context())


async def test_an_eager_task_reaches_its_first_wait_in_a_task_of_its_own() -> None:
    tasks: list[Any] = []
    gate = asyncio.get_running_loop().create_future()

    async def work() -> str:
        tasks.append(asyncio.current_task())
        value: str = await gate
        tasks.append(asyncio.current_task())
        return value

    task = begin(work())
    assert tasks == [task]
    assert asyncio.current_task() is not task
    gate.set_result("open")
    assert await task == "open"
    assert tasks == [task, task]


@pytest.mark.parametrize("waits", [False, True])
async def test_what_it_returns_or_raises_is_the_tasks(waits: bool) -> None:
    async def work(error: Exception | None) -> int:
        if waits:
            await asyncio.sleep(0)
        if error is not None:
            raise error
        return 3

    assert await begin(work(None)) == 3
    with pytest.raises(LookupError):
        await begin(work(LookupError("no")))


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_cancelling_it_reaches_where_it_waits(turns: int) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    task = begin(work())
    for _ in range(turns):
        await asyncio.sleep(0)
    assert task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert seen == ["cleaned up"]


async def test_one_that_has_ended_at_once_can_be_cancelled() -> None:
    async def work() -> None: ...

    task = begin(work())
    task.cancel()
    await asyncio.wait([task])


async def test_a_time_out_in_its_first_step_is_its_own() -> None:
    async def work() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(600)
        except TimeoutError:
            return "late"
        return "never"

    assert await begin(work()) == "late"
