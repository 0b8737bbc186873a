"""Tests of events during the submission of tasks to a backend."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from rhapsody import TaskTimeoutError, WorkflowEngine
from rhapsody.task import TaskDescription
from tests._support.scripted import ManualClock, Scripted, turns, within

pytestmark = pytest.mark.asyncio


async def test_a_task_that_is_cancelled_while_its_batch_is_put_together_is_not_handed_over() -> (
    None
):
    async with WorkflowEngine.create(backend := Scripted(), fail_fast=True) as flow:

        @flow.function_task
        def part() -> None: ...

        @flow.executable_task
        def refused() -> str:
            raise LookupError("it cannot be built")

        first, second = part(), refused()
        await within(asyncio.gather(first, second, return_exceptions=True))
        await turns()
        assert first.cancelled()
        assert isinstance(second.exception(), LookupError)
        assert backend.tasks == []


async def test_a_task_over_its_time_fails_though_the_backend_then_refuses_its_batch() -> None:
    class Slow(Scripted):
        """Reports that tasks run, takes long, and refuses them after all."""

        asked: asyncio.Event
        refuse: asyncio.Event

        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            for task in tasks:
                self.runs(task)
            self.asked.set()
            await self.refuse.wait()
            raise OSError("no")

    backend = Slow()
    backend.asked, backend.refuse = asyncio.Event(), asyncio.Event()
    clock = ManualClock()
    async with WorkflowEngine.create(backend, clock=clock, submit_timeout=None) as flow:

        @flow.function_task(timeout=5)
        def part() -> None: ...

        future = part()
        await within(backend.asked.wait())
        await clock.advance(6)
        backend.refuse.set()
        await within(asyncio.wait([future]))
        error = future.exception()
        assert isinstance(error, TaskTimeoutError)
        assert "the work goes on" not in str(error)


async def test_what_a_backend_reports_while_it_is_given_tasks_does_not_run_inside_it() -> None:
    class Eager(Scripted):
        """Says of each task how it ended before it has taken the whole batch."""

        inside = False

        async def submit_tasks(self, tasks: Sequence[TaskDescription]) -> None:
            self.inside = True
            for task in tasks:
                self.failed(task, LookupError(task["args"][0]))
            self.inside = False

    seen: list[bool] = []
    async with WorkflowEngine.create(backend := Eager()) as flow:

        def instead(error: BaseException) -> Any:
            seen.append(backend.inside)
            return error.args[0]

        @flow.function_task(fallback=instead)
        def part(number: int) -> None: ...

        futures = flow.map(part, range(100))
        assert await within(asyncio.gather(*futures)) == list(range(100))
    assert seen == [False] * 100
