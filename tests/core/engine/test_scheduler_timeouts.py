"""Timeouts: they count from the start of each attempt, and stop the work."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from rhapsody import (
    DependencyFailureError,
    LocalExecutionBackend,
    Resources,
    RetryPolicy,
    TasksMainStates,
    TaskTimeoutError,
    WorkflowEngine,
)
from tests._support.scripted import RUNS_ALL, ManualClock, Scripted, turns, within

pytestmark = pytest.mark.asyncio

UNSTOPPABLE = dataclasses.replace(
    RUNS_ALL, cancel_functions="queued", cancel_async_functions="none"
)


async def test_a_timeout_is_counted_from_the_start_of_running() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(timeout=10)
        def part() -> Any: ...

        future = part()
        task = await backend.next()
        await clock.advance(1000)
        backend.runs(task)
        await clock.advance(9.9)
        assert not future.done()
        assert backend.stops == []
        await clock.advance(0.2)
        assert backend.stops == [task["uid"]]
        with pytest.raises(TimeoutError) as caught:
            await within(future)
        assert type(caught.value) is TaskTimeoutError
        assert "part" in str(caught.value)
        assert "10" in str(caught.value)
        assert future.state is TasksMainStates.FAILED
        await within(future.ended())


async def test_a_task_that_ends_in_time_leaves_no_timer() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock, timeout=10) as flow:

        @flow.function_task
        def part() -> Any: ...

        futures = [part() for _ in range(3)]
        tasks = [await backend.next() for _ in futures]
        for task in tasks:
            backend.runs(task)
        await turns()
        assert clock.waiting == len(tasks)
        backend.done(tasks[0], 1)
        backend.failed(tasks[1], OSError())
        futures[2].cancel()
        await within(asyncio.wait(futures))
        await turns()
        assert clock.waiting == 0
        await clock.advance(100)
        assert await futures[0] == 1


async def test_each_attempt_has_the_whole_time() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(timeout=10, retries=2)
        def part() -> Any: ...

        future = part()
        backend.runs(await backend.next())
        await clock.advance(10.1)
        backend.runs(second := await backend.next())
        await clock.advance(9)
        backend.failed(second, OSError())
        backend.runs(third := await backend.next())
        await clock.advance(9)
        assert not future.done()
        backend.done(third, 3)
        assert await within(future) == 3


async def test_a_timeout_of_the_last_attempt_fails_dependents_with_it_as_root_cause() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock, timeout=10) as flow:

        @flow.function_task
        def part(x: Any = None) -> Any: ...

        future = part(part.options(name="slow")())
        backend.runs(await backend.next())
        await clock.advance(11)
        with pytest.raises(DependencyFailureError) as caught:
            await within(future)
        assert isinstance(caught.value.root_cause, TaskTimeoutError)
        assert caught.value.failed_dependencies == ["slow"]


async def test_a_tasks_own_timeout_goes_before_the_engines() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock, timeout=10) as flow:

        @flow.function_task
        def part() -> Any: ...

        longer = part.options(timeout=100)()
        backend.runs(task := await backend.next())
        await clock.advance(50)
        assert not longer.done()
        backend.done(task, 1)
        assert await within(longer) == 1


async def test_durations_may_be_text_wherever_they_are_taken() -> None:
    clock = ManualClock()
    creating = WorkflowEngine.create(
        backend := Scripted(), clock=clock, timeout="1m 30s", submit_timeout="1 min"
    )
    async with creating as flow:

        @flow.function_task(retries=RetryPolicy(1, wait="10 s"))
        def part() -> Any: ...

        futures = [
            part(),
            part.options(timeout="2 min", resources={"walltime": "1h"})(),
            part.options(service=True, ready_timeout="5 min")(),
        ]
        tasks = [await backend.next() for _ in futures]
        assert [task.get("timeout") for task in tasks] == [90, 120, None]
        assert tasks[1]["resources"] == Resources(walltime=3600)
        with pytest.raises(
            ValueError, match=r"timeout must be a number of seconds or text such as .*'soon'"
        ):
            part.options(timeout="soon")
        with pytest.raises(ValueError, match="submit_timeout must be a number of seconds or text"):
            WorkflowEngine.create(submit_timeout="soon")
        await flow.shutdown()


async def test_a_stoppable_task_fails_when_it_has_stopped_whatever_it_says() -> None:
    clock = ManualClock()
    backend = Scripted()
    backend.stopping = None
    async with WorkflowEngine.create(backend, clock=clock) as flow:

        @flow.function_task(timeout=10)
        def part() -> Any: ...

        future = part()
        backend.runs(task := await backend.next())
        await clock.advance(10.1)
        assert backend.stops == [task["uid"]]
        backend.done(task, "finished after all")
        with pytest.raises(TaskTimeoutError):
            await within(future)


async def test_a_backend_that_does_not_stop_a_task_does_not_keep_its_future_for_ever() -> None:
    clock = ManualClock()
    backend = Scripted()
    backend.stopping = None
    async with WorkflowEngine.create(backend, clock=clock) as flow:

        @flow.function_task(timeout=10)
        def part() -> Any: ...

        future = part()
        backend.runs(task := await backend.next())
        await clock.advance(600)
        assert future.done()
        with pytest.raises(TaskTimeoutError):
            await within(future)
        backend.stopped(task)
        await within(future.ended())


async def test_a_stoppable_task_can_be_cancelled_while_it_is_being_stopped() -> None:
    clock = ManualClock()
    backend = Scripted()
    backend.stopping = None
    async with WorkflowEngine.create(backend, clock=clock) as flow:

        @flow.function_task(timeout=10, retries=5)
        def part() -> Any: ...

        future = part()
        backend.runs(task := await backend.next())
        await clock.advance(10.1)
        assert future.cancel() is True
        assert future.cancelled()
        backend.stopped(task)
        await within(future.ended())
        assert len(backend.tasks) == 1


async def test_work_that_cannot_be_stopped_fails_its_future_at_once_and_keeps_its_slot() -> None:
    clock = ManualClock()
    backend = Scripted(capabilities=UNSTOPPABLE)
    backend.stopping = None
    async with WorkflowEngine.create(backend, clock=clock, max_pending=1) as flow:

        @flow.function_task(timeout=10)
        def part() -> Any: ...

        first, second = part(), part()
        backend.runs(task := await backend.next())
        await clock.advance(10.1)
        assert first.done()
        with pytest.raises(TaskTimeoutError, match="continues to run") as caught:
            await within(first)
        assert "process" in str(caught.value)
        await clock.advance(1000)
        assert len(backend.tasks) == 1
        ended = asyncio.create_task(first.ended())
        await turns()
        assert not ended.done()
        backend.done(task, "too late")
        await within(ended)
        assert flow.stats.late == 1
        assert isinstance(first.exception(), TaskTimeoutError)
        backend.done(await backend.next(), 2)
        assert await within(second) == 2


async def test_a_backend_that_reports_no_start_is_timed_from_its_acceptance() -> None:
    clock = ManualClock()
    backend = Scripted(capabilities=dataclasses.replace(RUNS_ALL, reports_running=False))
    async with WorkflowEngine.create(backend, clock=clock) as flow:

        @flow.function_task(timeout=10)
        def part() -> Any: ...

        future = part()
        await backend.next()
        await clock.advance(9)
        assert not future.done()
        await clock.advance(2)
        with pytest.raises(TaskTimeoutError):
            await within(future)


async def test_a_service_that_serves_is_not_timed_out() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock, timeout=10) as flow:

        @flow.executable_task(service=True)
        async def server() -> str:
            return "serve"

        future = server()
        backend.ready(await backend.next(), "address")
        assert await within(future) == "address"
        await clock.advance(1000)
        assert backend.stops == []
        assert future.state is TasksMainStates.RUNNING


async def test_a_late_start_report_restarts_the_timeout_of_its_attempt() -> None:
    clock = ManualClock()
    backend = Scripted(capabilities=dataclasses.replace(RUNS_ALL, reports_running=False))
    async with WorkflowEngine.create(backend, clock=clock) as flow:

        @flow.function_task(timeout=10, retries=1)
        def part() -> Any: ...

        future = part()
        first = await backend.next()
        await clock.advance(9)
        backend.runs(first)
        await clock.advance(9)
        assert backend.stops == []
        backend.failed(first, OSError())
        second = await backend.next()
        await clock.advance(9)
        assert backend.stops == []
        backend.done(second, 1)
        assert await within(future) == 1
        assert clock.waiting == 0


@pytest.mark.parametrize("stoppable", [True, False])
async def test_a_fallback_stands_in_for_what_took_too_long(*, stoppable: bool) -> None:
    clock = ManualClock()
    backend = Scripted(capabilities=RUNS_ALL if stoppable else UNSTOPPABLE)
    if not stoppable:
        backend.stopping = None
    seen: list[Any] = []

    def instead(error: BaseException) -> str:
        seen.append(error)
        return "plan B"

    async with WorkflowEngine.create(backend, clock=clock, max_pending=1) as flow:

        @flow.function_task(timeout=10, fallback=instead)
        def part() -> Any: ...

        future, other = part(), part()
        backend.runs(task := await backend.next())
        await clock.advance(10.1)
        assert await within(future) == "plan B"
        assert [type(error) for error in seen] == [TaskTimeoutError]
        assert future.state is TasksMainStates.DONE
        if not stoppable:
            await turns()
            assert len(backend.tasks) == 1, "the work keeps its slot"
            backend.done(task, "too late")
        await within(future.ended())
        assert future.result() == "plan B"
        backend.done(await backend.next(), 2)
        assert await within(other) == 2
        assert (flow.stats.done, flow.stats.failed) == (2, 0)


async def test_work_that_ended_before_a_late_timer_has_not_timed_out() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(timeout=10, retries=1)
        def part() -> Any: ...

        future = part()
        backend.runs(task := await backend.next())
        await turns()
        clock.now += 1000  # the loop was blocked
        await clock.advance(0)
        assert backend.stops == []
        backend.done(task, 1)
        assert await within(future) == 1
        assert future.attempt == 1
        assert clock.waiting == 0


async def test_work_that_goes_on_after_a_late_timer_has_the_timeout_once_more() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(timeout=10)
        def part() -> Any: ...

        future = part()
        backend.runs(task := await backend.next())
        await turns()
        clock.now += 1000
        await clock.advance(9.9)
        assert backend.stops == []
        await clock.advance(0.2)
        assert backend.stops == [task["uid"]]
        with pytest.raises(TaskTimeoutError):
            await within(future)


async def test_timeouts_expire_on_a_loop_that_is_always_late() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(timeout=10)
        def part() -> Any: ...

        future = part()
        backend.runs(await backend.next())
        await turns()
        for _ in range(10):
            clock.now += 20
            await clock.advance(0)
        with pytest.raises(TaskTimeoutError):
            await within(future)


@pytest.mark.parametrize("kind", ["thread", "process"])
async def test_a_command_that_ends_while_the_loop_is_blocked_does_not_time_out(
    tmp_path: Path, kind: str
) -> None:
    ran = tmp_path / "ran"
    async with WorkflowEngine.create(LocalExecutionBackend(kind)) as flow:

        @flow.executable_task(timeout=1)
        def command() -> str:
            return f"echo ok; touch {ran}"

        future = command()
        while future.state is not TasksMainStates.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0)
        expired = time.monotonic() + 1.2
        while not ran.exists() or time.monotonic() < expired:
            time.sleep(0.01)  # noqa: ASYNC251 - this blocks the loop
        assert await within(future) == "ok\n"
        assert future.attempt == 1
