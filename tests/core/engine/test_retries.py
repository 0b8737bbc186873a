"""Retries, and losses of infrastructure with a budget of their own."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from rhapsody import (
    RetryPolicy,
    TaskFailedError,
    TaskLostError,
    TasksMainStates,
    WorkflowEngine,
)
from tests._support.scripted import RUNS_ALL, Inline, ManualClock, Scripted, turns, within

pytestmark = pytest.mark.asyncio

UNSTOPPABLE = dataclasses.replace(
    RUNS_ALL, cancel_functions="queued", cancel_async_functions="none"
)


async def test_a_failed_task_is_tried_again_under_another_uid() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=2)
        def part(x: Any = None) -> Any: ...

        future = part("given")
        dependent = part(future)
        attempts = []
        for number in (1, 2):
            attempts.append(await backend.next())
            assert future.attempt == number
            backend.failed(attempts[-1], OSError(f"attempt {number}"))
        attempts.append(await backend.next())
        assert not future.done()
        assert not dependent.done()
        backend.done(attempts[-1], 42)
        assert await within(future) == 42
        assert future.attempt == 3
        assert [task["attempt"] for task in attempts] == [1, 2, 3]
        assert [task["uid"] for task in attempts] == [
            f"{flow.uid}.task.000001.{number}" for number in (1, 2, 3)
        ]
        assert all(task["args"] == ("given",) for task in attempts)
        assert all("exception" not in task for task in attempts[2:])
        backend.done(await backend.next(), 1)
        await within(dependent)
        assert flow.stats.retried == 2
        assert flow.stats.failed == 0


async def test_when_all_attempts_have_failed_the_last_exception_is_raised() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        calls = []

        @flow.function_task(retries=2)
        def part() -> int:
            calls.append(1)
            raise OSError(f"attempt {len(calls)}")

        future = part()
        with pytest.raises(OSError, match="attempt 3"):
            await within(future)
        assert len(calls) == 3
        assert future.attempt == 3


async def test_the_engines_retries_hold_where_a_task_names_none() -> None:
    async with WorkflowEngine.create(Inline(), retries=1) as flow:
        calls: list[str] = []

        @flow.function_task
        def part(label: str) -> int:
            calls.append(label)
            raise OSError

        futures = [part("engine"), part.options(retries=0)("none"), part.options(retries=3)("own")]
        await within(asyncio.wait(futures))
        assert [calls.count(label) for label in ("engine", "none", "own")] == [2, 1, 4]
        assert all(isinstance(future.exception(), OSError) for future in futures)


async def test_executables_are_tried_again_after_a_non_zero_exit() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:
        commands = []

        @flow.executable_task(retries=1)
        async def tool() -> str:
            commands.append("tool")
            return "tool"

        future = tool()
        task = await backend.next()
        task["exit_code"], task["stderr"] = 1, "busy"
        backend.report(task, TasksMainStates.FAILED)
        task = await backend.next()
        assert "exit_code" not in task
        assert "stderr" not in task
        task["exit_code"], task["stdout"], task["stderr"] = 0, "fine\n", ""
        backend.report(task, TasksMainStates.DONE)
        assert await within(future) == "fine\n"
        assert (future.exit_code, future.stderr) == (0, "")


async def test_the_next_attempt_waits_as_long_as_the_policy_says() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=2, wait=10))
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), OSError())
        await clock.advance(9.9)
        assert len(backend.tasks) == 1
        await clock.advance(0.2)
        assert len(backend.tasks) == 2
        backend.failed(await backend.next(), OSError())
        await clock.advance(9.9)
        assert len(backend.tasks) == 2
        await clock.advance(0.2)
        backend.done(await backend.next(), 1)
        assert await within(future) == 1


async def test_the_wait_is_any_callable_from_attempt_to_seconds() -> None:
    clock = ManualClock()
    asked = []

    def wait(attempt: int) -> float:
        asked.append(attempt)
        return 10.0**attempt

    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=5, wait=wait))
        def part() -> Any: ...

        future = part()
        for number in (1, 2):
            backend.failed(await backend.next(), OSError())
            await clock.advance(10.0**number - 1)
            assert len(backend.tasks) == number
            await clock.advance(2)
            assert len(backend.tasks) == number + 1
        backend.done(await backend.next(), 1)
        assert await within(future) == 1
        assert asked == [1, 2]


@pytest.mark.parametrize("nonsense", [-1, "soon", None, float("nan")])
async def test_a_wait_that_is_no_number_of_seconds_fails_the_task(nonsense: Any) -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=1, wait=lambda attempt: nonsense))
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), OSError("the reason"))
        await within(asyncio.wait([future]))
        error = future.exception()
        assert isinstance(error, ValueError | TypeError)
        assert "of task 'part' (task.000001)" in error.__notes__[0]


async def test_a_wait_that_raises_fails_the_task() -> None:
    def wait(attempt: int) -> float:
        raise LookupError("no idea")

    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=1, wait=wait))
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), reason := OSError("the reason"))
        await within(asyncio.wait([future]))
        error = future.exception()
        assert isinstance(error, LookupError)
        assert error.__cause__ is reason
        assert "`wait` in the retries of task 'part' (task.000001)" in error.__notes__[0]


async def test_only_the_named_exceptions_are_worth_another_attempt() -> None:
    async with WorkflowEngine.create(Inline()) as flow:
        calls: list[str] = []

        @flow.function_task(retries=RetryPolicy(attempts=3, on=(ConnectionError, KeyError)))
        def part(error: type[Exception]) -> int:
            calls.append(error.__name__)
            raise error

        for error in (ConnectionResetError, KeyError, ValueError):
            with pytest.raises(error):
                await within(part(error))
        assert [calls.count(name) for name in ("ConnectionResetError", "KeyError")] == [4, 4]
        assert calls.count("ValueError") == 1


async def test_by_default_what_is_no_exception_is_not_tried_again() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=3)
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), SystemExit(3))
        await within(asyncio.wait([future]))
        assert isinstance(future.exception(), SystemExit)
        assert len(backend.tasks) == 1


async def test_a_task_that_waits_for_its_next_attempt_can_be_cancelled() -> None:
    clock = ManualClock()
    async with WorkflowEngine.create(backend := Scripted(), clock=clock) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=2, wait=10))
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), OSError())
        await turns()
        assert future.cancel() is True
        await within(future.ended())
        await clock.advance(100)
        assert len(backend.tasks) == 1
        assert backend.stops == []
        assert clock.waiting == 0


async def test_losses_have_a_budget_of_their_own() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=1)
        def part() -> Any: ...

        future = part()
        lost = TaskLostError("the worker went away")
        for error in (lost, OSError("own"), lost, lost):
            backend.failed(await backend.next(), error)
        backend.done(await backend.next(), 42)
        assert await within(future) == 42
        assert flow.stats.lost == 3


async def test_the_fourth_loss_fails_the_task() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task
        def part() -> Any: ...

        future = part()
        for number in range(1, 5):
            backend.failed(await backend.next(), TaskLostError(f"loss {number}"))
        with pytest.raises(TaskLostError, match="loss 4"):
            await within(future)
        await turns()
        assert len(backend.tasks) == 4


async def test_the_budget_of_losses_is_set_for_an_engine_and_for_a_task() -> None:
    async with WorkflowEngine.create(backend := Scripted(), lost_retries=0) as flow:

        @flow.function_task
        def part() -> Any: ...

        strict, tolerant = part(), part.options(lost_retries=1)()
        for _ in range(2):
            backend.failed(await backend.next(), TaskLostError("gone"))
        backend.done(await backend.next(), 42)
        assert await within(tolerant) == 42
        with pytest.raises(TaskLostError):
            await within(strict)


async def test_a_loss_is_tried_again_whatever_exceptions_a_policy_names() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.function_task(retries=RetryPolicy(attempts=1, on=KeyError))
        def part() -> Any: ...

        future = part()
        backend.failed(await backend.next(), TaskLostError("gone"))
        backend.failed(await backend.next(), KeyError("own"))
        backend.done(await backend.next(), 1)
        assert await within(future) == 1


@pytest.mark.parametrize(
    ("setting", "value", "kind"),
    [
        ("retries", -1, ValueError),
        ("retries", "two", TypeError),
        ("retries", 1.5, TypeError),
        ("retries", True, TypeError),
        ("lost_retries", -1, ValueError),
        ("timeout", -1, ValueError),
        ("timeout", 0, ValueError),
        ("timeout", [10], TypeError),
        ("timeout", float("nan"), ValueError),
        ("timeout", float("inf"), ValueError),
    ],
)
async def test_wrong_numbers_are_refused_where_they_are_written(
    setting: str, value: Any, kind: type[Exception]
) -> None:
    given: dict[str, Any] = {setting: value}
    with pytest.raises(kind, match=setting):
        await WorkflowEngine.create(Inline(), **given)
    async with WorkflowEngine.create(Inline()) as flow:

        def part() -> None: ...

        with pytest.raises(kind, match=setting):
            flow.function_task(**given)(part)
        with pytest.raises(kind, match=setting):
            flow.function_task(part).options(**given)


async def test_a_retried_executables_error_is_of_its_last_attempt() -> None:
    async with WorkflowEngine.create(backend := Scripted()) as flow:

        @flow.executable_task(retries=1)
        async def tool() -> str:
            return "tool"

        future = tool()
        for code in (1, 2):
            task = await backend.next()
            task["exit_code"], task["stderr"] = code, f"error {code}"
            backend.report(task, TasksMainStates.FAILED)
        with pytest.raises(TaskFailedError, match="error 2") as caught:
            await within(future)
        assert caught.value.exit_code == 2
