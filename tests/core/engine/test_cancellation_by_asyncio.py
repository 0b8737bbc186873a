"""Cancellation by asyncio itself: wait_for, timeout, shield, gather, task groups."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from tests._support.scripted import Scripted, Stubborn, cancelled, turns, within

pytestmark = pytest.mark.asyncio


async def test_wait_for_returns_after_its_timeout_while_the_work_continues() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        backend.runs(task := await backend.next())
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.05)
        assert time.monotonic() - began < 5
        assert future.cancelled()
        backend.done(task, 1)
        await within(future.ended())


async def test_asyncio_timeout_returns_in_time_while_the_work_continues() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        future = part()
        dependent = part(future)
        backend.runs(task := await backend.next())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await future
        assert future.cancelled()
        assert dependent.cancelled()
        backend.done(task, 1)
        await within(future.ended())


async def test_shield_protects_a_task_as_it_does_any_future() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        task = await backend.next()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(future), 0.01)
        backend.done(task, 7)
        assert await within(future) == 7


async def test_a_failure_in_a_task_group_cancels_the_tasks_its_members_wait_for() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        async def wait_for_it(future: asyncio.Future[int]) -> int:
            return await future

        bad, other = part(), part()

        async def in_a_group() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(wait_for_it(bad))
                group.create_task(wait_for_it(other))
                backend.failed(await backend.next(), LookupError("gone"))

        with pytest.raises(ExceptionGroup) as caught:
            await within(in_a_group())
        assert caught.group_contains(LookupError)
        assert other.cancelled()
        await within(other.ended())
        assert backend.stops == [backend.tasks[1]["uid"]]


async def test_cancelling_a_gather_cancels_what_it_gathers() -> None:
    async with WorkflowEngine.create(Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        futures = [part() for _ in range(3)]
        together = asyncio.gather(*futures)
        await turns()
        together.cancel()
        assert await cancelled(together)
        assert all(future.cancelled() for future in futures)


async def test_cancelling_who_waits_cancels_the_task_and_runs_their_clean_up() -> None:
    async with WorkflowEngine.create(backend := Stubborn()) as flow:

        @flow.function_task
        def part() -> Any: ...

        cleaned = []

        async def user() -> None:
            try:
                await part()
            finally:
                cleaned.append(True)

        who = asyncio.create_task(user())
        backend.runs(task := await backend.next())
        who.cancel()
        assert await cancelled(who)
        assert cleaned == [True]
        await turns()
        assert backend.stops == [task["uid"]]
        backend.stopped(task)
